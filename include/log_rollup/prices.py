"""Prices of S3's storage classes, from a dated file, and the rules by which S3 bills each class."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from include.log_rollup.errors import ConfigurationError
from include.log_rollup.units import KIB
from include.log_rollup.yaml_file import parse_yaml

STANDARD = "STANDARD"
STANDARD_IA = "STANDARD_IA"
ONEZONE_IA = "ONEZONE_IA"
INTELLIGENT_TIERING = "INTELLIGENT_TIERING"
GLACIER_IR = "GLACIER_IR"
GLACIER = "GLACIER"
DEEP_ARCHIVE = "DEEP_ARCHIVE"

ClassName = Literal[
    "STANDARD",
    "REDUCED_REDUNDANCY",
    "STANDARD_IA",
    "ONEZONE_IA",
    "INTELLIGENT_TIERING",
    "GLACIER_IR",
    "GLACIER",
    "DEEP_ARCHIVE",
]

SMALL_BYTES = 128 * KIB
"""Objects below this size are billed as if they had it, or are not moved, depending on the class."""


@dataclass(frozen=True, slots=True)
class BillingRules:
    """How S3 bills the objects of a storage class, apart from its prices.

    https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-class-intro.html#sc-compare

    :param minimum_days: an object that is deleted or moved earlier is billed for so many days
    :param minimum_bytes: a smaller object is billed as if it had this size
    :param overhead_bytes: added to each object, at the price of its class
    :param overhead_standard_bytes: added to each object, at the price of STANDARD
    :param least_age_days: the earliest age at which a lifecycle rule moves objects into the class
    :param is_archive: whether objects have to be restored before they can be read
    """

    minimum_days: int = 0
    minimum_bytes: int = 0
    overhead_bytes: int = 0
    overhead_standard_bytes: int = 0
    least_age_days: int = 0
    is_archive: bool = False


_INFREQUENT = BillingRules(minimum_days=30, minimum_bytes=SMALL_BYTES, least_age_days=30)
# Index and metadata of an archived object take 40 KB: 32 KB at its own price, 8 KB at that of STANDARD.
_ARCHIVE = {"overhead_bytes": 32 * KIB, "overhead_standard_bytes": 8 * KIB}
RULES: Mapping[str, BillingRules] = {
    STANDARD: BillingRules(),
    "REDUCED_REDUNDANCY": BillingRules(),
    STANDARD_IA: _INFREQUENT,
    ONEZONE_IA: _INFREQUENT,
    INTELLIGENT_TIERING: BillingRules(),
    GLACIER_IR: BillingRules(minimum_days=90, minimum_bytes=SMALL_BYTES),
    GLACIER: BillingRules(minimum_days=90, is_archive=True, **_ARCHIVE),
    DEEP_ARCHIVE: BillingRules(minimum_days=180, is_archive=True, **_ARCHIVE),
}
"""Of each class whose prices are known."""

COMPARED_CLASSES = tuple(name for name in RULES if name != "REDUCED_REDUNDANCY")
"""The classes that AWS recommends."""

Price = Annotated[float, Field(ge=0)]


class _Checked(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class RetrievalPrices(_Checked):
    """Prices of a retrieval tier: for a GB, and for 1,000 objects."""

    retrieval: Price
    restore: Price


class ClassPrices(_Checked):
    """Prices of one storage class; requests are priced for 1,000, storage for a GB (2^30 bytes) and a month.

    :param tiers: days without access, and the price of storage from then on
    :param retrieval: for a GB that is read; of an archive class, with the tier Standard
    :param restore: of objects that are retrieved from an archive class with the tier Standard
    :param bulk: the same with the tier Bulk; None if the file has no price of it
    :param expedited: the same with the tier Expedited
    """

    storage: Price
    put: Price
    get: Price
    transition: Price = 0.0
    retrieval: Price = 0.0
    restore: Price = 0.0
    bulk: RetrievalPrices | None = None
    expedited: RetrievalPrices | None = None
    monitoring: Price = 0.0
    tiers: Mapping[Annotated[int, Field(ge=1)], Price] = {}


class Prices(_Checked):
    """A file of prices."""

    as_of: date
    region: Annotated[str, Field(min_length=1)]
    currency: Annotated[str, Field(min_length=1)]
    source: Annotated[str, Field(min_length=1)]
    classes: Mapping[ClassName, ClassPrices]

    @model_validator(mode="after")
    def _has_all_classes(self) -> "Prices":
        missing = [name for name in RULES if name not in self.classes]
        if missing:
            raise ValueError(f"classes: {', '.join(missing)} missing; give the prices of all classes")
        return self

    def of(self, storage_class: str) -> ClassPrices:
        """The prices of a class.

        :param storage_class: one of :data:`RULES`
        """
        return self.classes[storage_class]  # type: ignore[index]


def prices_path() -> Path:
    """Path of the price file: LOG_ROLLUP_PRICES, or ``include/prices.yaml``."""
    default = Path(__file__).resolve().parent.parent / "prices.yaml"
    return Path(os.environ.get("LOG_ROLLUP_PRICES") or default)


# Cached, because the page Hours reads the file at each request. A change of the file takes effect at once.
@lru_cache(maxsize=2)
def _parse(content: bytes) -> Prices:
    return Prices.model_validate(parse_yaml(content))


def load_prices(path: Path | None = None) -> Prices:
    """Read and check a price file.

    :param path: the file; the default is :func:`prices_path`
    :raises ConfigurationError: with the file, the key and the fix
    """
    path = path or prices_path()
    try:
        return _parse(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(
            f"{path}: the prices cannot be read ({error.strerror}); LOG_ROLLUP_PRICES or --prices has to name a "
            f"readable file"
        ) from None
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from None
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg'].removeprefix('Value error, ')}".removeprefix(
                ": "
            )
            for problem in error.errors()[:3]
        )
        raise ConfigurationError(
            f"{path}: the prices are not right: {problems}. Write the file like include/prices.yaml"
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path}: the prices are not YAML: {' '.join(str(error).split())}") from None
