"""Publish what was made: model cards, the Hugging Face Hub, and ONNX files.

`push` uploads a world model, a V, an agent or a store as the directory that ``save_pretrained`` writes, with a model card;
`pull` opens it. ``hf://user/name`` works wherever a directory is read. Digests are checked after the download, and nothing in a
directory is executed. `export_onnx` writes a world model and a controller as ONNX files, to run them without torch.

Example:
    >>> from worldmodel.runtime import HubName
    >>> print(HubName.parse("hf://user/cartpole@v1"))
    hf://user/cartpole@v1
"""

from typing import TYPE_CHECKING

from worldmodel.lazy import attach

if TYPE_CHECKING:
    from worldmodel.sharing.compact import save_compact as save_compact
    from worldmodel.sharing.hub import pull as pull
    from worldmodel.sharing.hub import push as push
    from worldmodel.sharing.onnx_export import EXPORT_FILE as EXPORT_FILE
    from worldmodel.sharing.onnx_export import EXPORT_FORMAT as EXPORT_FORMAT
    from worldmodel.sharing.onnx_export import EXPORT_VERSION as EXPORT_VERSION
    from worldmodel.sharing.onnx_export import OnnxExport as OnnxExport
    from worldmodel.sharing.onnx_export import export_onnx as export_onnx
else:
    __getattr__, __dir__, __all__ = attach(
        __name__,
        {
            "compact": "save_compact",
            "hub": "pull push",
            "onnx_export": "EXPORT_FILE EXPORT_FORMAT EXPORT_VERSION OnnxExport export_onnx",
        },
    )
