"""Jobs on somebody's Ray cluster: what travels there, Ray Jobs, and manifests for Kubernetes.

Knows how a command line starts a run, and nothing of what a run does. `bundle`, `pins` and
`visibility` need no ray; `jobs` talks to the cluster.
"""
