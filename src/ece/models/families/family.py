"""What has to be said about an architecture before its facts can be edited."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Where the parts of a decoder are, as dotted paths."""

    model_types: tuple[str, ...]
    """The `config.model_type` values that have this shape."""

    layers: str
    """From the network to its list of decoder layers."""

    ffn_output: str
    """From a decoder layer to the linear map W of Eq. 3, which turns a key into a value."""

    final_norm: str
    """From the network to the norm in front of the unembedding."""

    transposed: bool = False
    """Whether the checkpoint keeps W as `[d_ff, d_model]` instead of `[d_model, d_ff]`."""
