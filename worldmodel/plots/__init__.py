"""Figures, pictures and films for people.

``report.py`` draws curves and scores with matplotlib, ``pictures.py`` lays out reconstructions and dreams as images,
``video.py`` writes films. Nothing below imports this package, so training and dreams run without a display and without
matplotlib.

Example:
    >>> import numpy as np
    >>> from worldmodel.plots import grid
    >>> row = np.zeros((3, 8, 8, 3), np.uint8)  # three pictures
    >>> grid([row, row], gap=2).shape
    (18, 28, 3)
"""

from typing import TYPE_CHECKING

from worldmodel.lazy import attach

if TYPE_CHECKING:
    from worldmodel.plots.data_figure import draw_store as draw_store
    from worldmodel.plots.forecast_figure import draw_open_loop as draw_open_loop
    from worldmodel.plots.pictures import colour as colour
    from worldmodel.plots.pictures import dream_frames as dream_frames
    from worldmodel.plots.pictures import dream_strip as dream_strip
    from worldmodel.plots.pictures import grid as grid
    from worldmodel.plots.pictures import image_vision as image_vision
    from worldmodel.plots.pictures import real_frames as real_frames
    from worldmodel.plots.pictures import reconstructions as reconstructions
    from worldmodel.plots.pictures import traversals as traversals
    from worldmodel.plots.report import draw_learning as draw_learning
    from worldmodel.plots.report import draw_loop as draw_loop
    from worldmodel.plots.report import draw_report as draw_report
    from worldmodel.plots.report import draw_rounds as draw_rounds
    from worldmodel.plots.report import draw_trajectory as draw_trajectory
    from worldmodel.plots.report import save_figure as save_figure
    from worldmodel.plots.report import save_image as save_image
    from worldmodel.plots.run_figures import draw_components as draw_components
    from worldmodel.plots.run_figures import draw_evaluation as draw_evaluation
    from worldmodel.plots.run_figures import draw_probe as draw_probe
    from worldmodel.plots.run_figures import draw_search as draw_search
    from worldmodel.plots.run_figures import draw_training_run as draw_training_run
    from worldmodel.plots.uncertainty_figure import draw_dream_uncertainty as draw_dream_uncertainty
    from worldmodel.plots.uncertainty_figure import draw_uncertainty as draw_uncertainty
    from worldmodel.plots.video import write_video as write_video
else:
    __getattr__, __dir__, __all__ = attach(
        __name__,
        {
            "data_figure": "draw_store",
            "forecast_figure": "draw_open_loop",
            "pictures": "colour dream_frames dream_strip grid image_vision real_frames reconstructions traversals",
            "report": "draw_learning draw_loop draw_report draw_rounds draw_trajectory save_figure save_image",
            "run_figures": "draw_components draw_evaluation draw_probe draw_search draw_training_run",
            "uncertainty_figure": "draw_dream_uncertainty draw_uncertainty",
            "video": "write_video",
        },
    )
