"""Places windows over a long clip."""

from __future__ import annotations


def window_starts(samples: int, window: int, hop: int, most: int) -> list[int]:
    """Places windows over a clip, spread evenly from its beginning to its end.

    There are just enough windows for neighbours to start at most `hop` apart, but never more than `most`. A remainder
    shorter than a twentieth of the window gets no window of its own: often it is the silence that an MP3 encoder
    appends. A single window lies in the middle.

    Args:
        samples: length of the clip, in samples; at least `window`.
        window: length of a window, in samples.
        hop: the largest distance between the starts of two neighbours, in samples.
        most: the largest number of windows.

    Returns:
        The first sample of each window, ascending.
    """
    rest = samples - window
    wanted = 1 + -(-max(0, rest - window // 20) // hop)
    count = min(most, wanted)
    if count == 1:
        return [rest // 2]
    return [round(i * rest / (count - 1)) for i in range(count)]
