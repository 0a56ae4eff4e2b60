"""The progress bar of ``compress``: it counts the epochs of all stages, and so can tell how long the rest will take.

Leaves out: what goes on within an epoch, which the bars of the trainings show.
"""

import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping

from tqdm.auto import tqdm


class StageBar:
    """Each stage is one step, and one more for each of its epochs.

    Whatever is found in the folder of an earlier call counts as done, but not as fast work: the time left is estimated
    from what this call has computed itself.
    """

    def __init__(self, stages: Iterable[tuple[str, Callable, Mapping]], shown: bool):
        """Begin before the first of ``stages``, which are (name, function, settings)."""
        steps = [1 + _epochs(function, settings) for _, function, settings in stages]
        self.ends = list(itertools.accumulate(steps, initial=0))
        self.stage = -1
        self.is_new = True
        self.bar = tqdm(total=self.ends[-1], desc="stages", unit="step", smoothing=0, disable=not shown, leave=False)

    def __enter__(self) -> "StageBar":
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()

    def begin(self, name: str) -> None:
        """The next stage begins."""
        self.stage += 1
        self.is_new = True
        self.bar.set_description(name)

    def epoch(self, number: int, *_) -> None:
        """Epoch ``number`` of this stage, from 1, is done; as ``on_epoch`` of ``fit``."""
        if self.is_new:  # epochs before the first one were done by an earlier call
            self._found(self.ends[self.stage] + number - 1)
            self.is_new = False
        self._move(self.ends[self.stage] + number)

    def end(self, found: bool) -> None:
        """This stage is done, or what it made was ``found`` in the folder."""
        end = self.ends[self.stage + 1]
        (self._found if found else self._move)(end)

    def _move(self, step: int) -> None:
        self.bar.update(step - self.bar.n)

    def _found(self, step: int) -> None:
        if not self.bar.disable:
            self.bar.initial += step - self.bar.n
        self._move(step)


def _epochs(function: Callable, settings: Mapping) -> int:
    """That a stage trains for; 0 for one that does not train."""
    parameter = inspect.signature(function).parameters.get("epochs")
    if parameter is None:
        return 0
    epochs = settings.get("epochs", parameter.default)
    return epochs if isinstance(epochs, int) else 0  # the stage will say what is wrong with it
