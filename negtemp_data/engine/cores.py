"""An engine's share of the CPU's cores."""

import threading


class CoreShare:
    """OpenMP threads for the engine's thread, and none for others of the process.

    Ray allows a worker one thread (OMP_NUM_THREADS). The number is each thread's own. With more
    pool threads than cores libgomp hardly lets them spin (GOMP_SPINCOUNT in its manual), and waking
    them costs more than many operations take.
    """

    def __init__(self, n_threads: int) -> None:
        """Gives the calling thread its share; others get theirs taken away by the first `hold`.

        Until then libraries that the engine loads may ask, and take what was set last.
        """
        import torch  # noqa: PLC0415

        self._n_threads = n_threads
        self._get = torch.get_num_threads
        # vLLM replaces torch.set_num_threads, which another engine of this process would call.
        self._set = torch._C.set_num_threads
        self._set(n_threads)
        self._is_alone = False

    def hold(self) -> None:
        """Makes sure of it, from the same thread: after the start, and between steps.

        Each library with parallel loops of torch's (vLLM's kernels are one) has a flag of its own
        whether a thread has asked for its number. At its first loop it does, and sets the thread's
        number to what any thread has set last.
        """
        if self._is_alone and self._get() == self._n_threads:
            return
        self._set(self._n_threads)
        self._get()
        others = threading.Thread(target=self._set, args=(1,))
        others.start()
        others.join()
        self._is_alone = True
