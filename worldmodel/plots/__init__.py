"""Figures, pictures and videos of world models and experiments."""

from typing import TYPE_CHECKING

from worldmodel.lazy import attach

if TYPE_CHECKING:
    from worldmodel.plots.pictures import colour as colour
    from worldmodel.plots.pictures import dream_frames as dream_frames
    from worldmodel.plots.pictures import dream_strip as dream_strip
    from worldmodel.plots.pictures import grid as grid
    from worldmodel.plots.pictures import real_frames as real_frames
    from worldmodel.plots.pictures import reconstructions as reconstructions
    from worldmodel.plots.pictures import traversals as traversals
    from worldmodel.plots.report import draw_learning as draw_learning
    from worldmodel.plots.report import draw_report as draw_report
    from worldmodel.plots.report import draw_trajectory as draw_trajectory
    from worldmodel.plots.report import save_figure as save_figure
    from worldmodel.plots.report import save_image as save_image
    from worldmodel.plots.video import write_video as write_video
else:
    __getattr__, __dir__, __all__ = attach(
        __name__,
        {
            "pictures": "colour dream_frames dream_strip grid real_frames reconstructions traversals",
            "report": "draw_learning draw_report draw_trajectory save_figure save_image",
            "video": "write_video",
        },
    )
