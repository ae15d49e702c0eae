"""OpenCV in one thread: `from agl_core.opencv import cv2`.

Its threads do not survive a fork, and a process that was forked while there were some waits for them for ever, as soon
as it uses OpenCV. The processes that load data are forked, and there are as many as cores: one thread each is right.
"""

import cv2

__all__ = ["cv2"]

cv2.setNumThreads(1)
