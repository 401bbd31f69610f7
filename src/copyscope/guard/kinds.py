"""Choose the kind of generation call for a pipeline, model, run or function."""

from __future__ import annotations

from typing import Any

from copyscope.diffusion.models import Model

from .calls import GenerationCall


def kind_of(made_by: Any) -> type[GenerationCall]:
    """Class of the calls of a pipeline, a model or run, or a function."""
    from copyscope.diffusion.run import Run

    from .function_call import FunctionCall
    from .model_call import ModelCall
    from .pipeline_call import OtherPipelineCall, PipelineCall, is_pipeline, is_text_pipeline

    if is_pipeline(made_by):
        return PipelineCall
    if is_text_pipeline(made_by):
        return OtherPipelineCall
    return ModelCall if isinstance(made_by, (Model, Run)) else FunctionCall
