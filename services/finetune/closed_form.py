"""Networks that are computed, not trained."""

import math
import time

import torch

from services.finetune.objectives import Batch
from services.finetune.training import Fit
from shared.fusion_parameters import AlignParameters
from shared.ml.fusion.cca import fit_cca
from shared.ml.multimodal import MultimodalModel


def fit_in_closed_form(network: MultimodalModel, train: Batch) -> Fit:
    """The projections of CCA for a network of the fusion `align` without embeddings, on standardised items.

    Raises JobError (`no_common_space`).
    """
    begun = time.monotonic()
    wanted = AlignParameters.model_validate(network.config.parameters)
    with torch.inference_mode():
        embedded = network.embed(train.vectors, train.mask)
        fitted = fit_cca(embedded, train.mask, wanted.dimension, wanted.regularisation)
    network.fusion.load_state_dict(fitted.state_dict())
    state = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
    return Fit(state, loss=math.nan, epoch=0, history=[], seconds=time.monotonic() - begun)
