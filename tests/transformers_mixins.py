# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""transformers' own test mixins, which every in-tree model has to pass.

They are not in its wheel but in its source distribution, which `make test` unpacks into the virtual environment. That
holds `tests/test_*.py` only, no packages below `tests`: what the mixins import from there is replaced here. Importing
this module without the source distribution skips the importing test module.
"""

import atexit
import functools
import importlib
import shutil
import sys
import tempfile
import types
import warnings
from pathlib import Path
from unittest import mock

import av
import numpy as np
import pytest
import transformers
import transformers.testing_utils
import transformers.utils
from PIL import Image


TESTS = Path(sys.prefix) / "transformers-tests" / f"transformers-{transformers.__version__}" / "tests"
if not (TESTS / "test_modeling_common.py").is_file():
    pytest.skip(
        f"needs the tests of transformers' source distribution in {TESTS}, which `make test` downloads when online",
        allow_module_level=True,
    )

_PACKAGE = "transformers_sdist_tests"


@functools.cache
def _media_folder() -> Path:
    folder = tempfile.mkdtemp(prefix="valley-mixins-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@functools.cache
def local_media(url: str) -> str:
    """A clip (11 frames, 30 per second) or picture made here instead of the one at `url`: no test touches the network.

    Sound, which only tests of other processors open, is not made.
    """
    path = _media_folder() / url.rsplit("/", 1)[-1]
    frames = np.random.default_rng(0).integers(0, 256, (11, 60, 80, 3), dtype=np.uint8)
    if path.suffix == ".mp4":
        with av.open(path, "w") as container:
            stream = container.add_stream("mpeg4", rate=30)
            stream.width, stream.height, stream.pix_fmt = 80, 60, "yuv420p"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
    elif path.suffix in (".png", ".jpg"):
        Image.fromarray(frames[0]).save(path)
    return str(path)


def _stand_in(name: str, **attributes) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(attributes)
    return module


class _GenerationTesterMixin:
    """Neither the wheel nor the source distribution has `tests/generation`: Valley has its own tests of `generate`."""


class _ExportTesterMixin:
    """Neither the wheel nor the source distribution has `tests/exporters`: exports are not tested here."""


def _import_mixins() -> list[types.ModuleType]:
    stand_ins = {
        # The folder as a package, for its relative imports: it has no `__init__.py`.
        _PACKAGE: _stand_in(_PACKAGE, __path__=[str(TESTS)]),
        f"{_PACKAGE}.generation": _stand_in(f"{_PACKAGE}.generation", __path__=[]),
        f"{_PACKAGE}.generation.test_utils": _stand_in(
            f"{_PACKAGE}.generation.test_utils", GenerationTesterMixin=_GenerationTesterMixin
        ),
        f"{_PACKAGE}.exporters": _stand_in(f"{_PACKAGE}.exporters", __path__=[]),
        f"{_PACKAGE}.exporters.test_export": _stand_in(
            f"{_PACKAGE}.exporters.test_export", ExportTesterMixin=_ExportTesterMixin
        ),
        # Common settings that `ConfigTester` tries on configs without sub-configs only, so never on Valley's.
        f"{_PACKAGE}.utils": _stand_in(f"{_PACKAGE}.utils", __path__=[]),
        f"{_PACKAGE}.utils.test_configuration_utils": _stand_in(
            f"{_PACKAGE}.utils.test_configuration_utils", config_common_kwargs={}
        ),
        # Where transformers' CI keeps what it downloaded for the tests.
        "fetch_hub_objects_for_ci": _stand_in("fetch_hub_objects_for_ci", url_to_local_path=local_media),
    }
    sys.modules.update(stand_ins)
    names = ("modeling", "configuration", "processing", "video_processing")
    with (
        warnings.catch_warnings(),
        mock.patch.object(sys, "path", list(sys.path)),  # test_processing_common appends to it
        # Would import the repository that the tests lie in as "transformers".
        mock.patch.object(transformers.utils, "direct_transformers_import", return_value=transformers),
        # transformers decodes videos with torchcodec; Valley does with PyAV, so its tests need no torchcodec.
        mock.patch.object(transformers.testing_utils, "require_torchcodec", lambda test: test),
    ):
        # transformers registers its pytest marks in a conftest that is not distributed.
        warnings.simplefilter("ignore", pytest.PytestUnknownMarkWarning)
        return [importlib.import_module(f"{_PACKAGE}.test_{name}_common") for name in names]


_modeling, _configuration, _processing, _video_processing = _import_mixins()

ModelTesterMixin = _modeling.ModelTesterMixin
floats_tensor = _modeling.floats_tensor
ids_tensor = _modeling.ids_tensor
ConfigTester = _configuration.ConfigTester
ProcessorTesterMixin = _processing.ProcessorTesterMixin
VideoProcessingTestMixin = _video_processing.VideoProcessingTestMixin
prepare_video_inputs = _video_processing.prepare_video_inputs
