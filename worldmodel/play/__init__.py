"""Play in a dream: a page that runs a world in the browser, and a local server that adds what needs Python.

`export_page` writes a static page; ``worldmodel play`` serves one, with the real environment beside the dream.

Example:
    >>> from gymnasium.spaces import Discrete
    >>> from worldmodel.play import controls_of
    >>> [(button["key"], button["label"]) for button in controls_of(Discrete(2), "CartPole-v1")["buttons"]]
    [('ArrowLeft', 'left'), ('ArrowRight', 'right')]
"""

from typing import TYPE_CHECKING

from worldmodel.lazy import attach

if TYPE_CHECKING:
    from worldmodel.play.controls import controls_of as controls_of
    from worldmodel.play.page import PageExport as PageExport
    from worldmodel.play.page import export_page as export_page
else:
    __getattr__, __dir__, __all__ = attach(
        __name__,
        {
            "controls": "controls_of",
            "page": "PageExport export_page",
        },
    )
