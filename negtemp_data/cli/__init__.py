"""The command line: click commands, one file each, and nothing else."""
