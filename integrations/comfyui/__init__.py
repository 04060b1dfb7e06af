"""mambair for ComfyUI: this folder goes into ComfyUI/custom_nodes, mambair into ComfyUI's Python (see README.md)."""

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
