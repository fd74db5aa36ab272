"""The host's model folders: which files are in them, and where they lie."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

GGUF = ".gguf"


def file_names(folder: str) -> list[str]:
    """Files of a model folder, relative to it: those that the host lists, and GGUF files, which it does not know.

    Args:
        folder: what the host calls it (``"diffusion_models"``).
    """
    import folder_paths

    listed = list(folder_paths.get_filename_list(folder))
    return sorted({*listed, *_gguf_names(folder)})


def full_path(folder: str, name: str) -> str:
    """Where a file of a model folder lies.

    Raises:
        FileNotFoundError: no folder of that kind has it; the message lists where it was looked for.
    """
    import folder_paths

    found = folder_paths.get_full_path(folder, name)
    if found is None:
        places = ", ".join(folder_paths.get_folder_paths(folder))
        raise FileNotFoundError(f"{name} is not among the host's {folder} ({places}); choose a file that is there")
    return str(found)


def diffusers_folder(name: str) -> str:
    """Where a folder in the layout of diffusers lies.

    Raises:
        FileNotFoundError: no folder of that name has a model_index.json.
    """
    import folder_paths

    places = [Path(place) for place in folder_paths.get_folder_paths("diffusers")]
    for place in places:
        if (place / name / "model_index.json").is_file():
            return str(place / name)
    raise FileNotFoundError(f"{name} with a model_index.json is in none of {', '.join(map(str, places))}")


def embedding_directory() -> list[str]:
    """Where the host keeps textual inversions."""
    import folder_paths

    return list(folder_paths.get_folder_paths("embeddings"))


def _gguf_names(folder: str) -> Iterator[str]:
    import folder_paths

    for place in map(Path, folder_paths.get_folder_paths(folder)):
        for path in place.rglob("*"):
            if path.suffix.lower() == GGUF and path.is_file():
                yield path.relative_to(place).as_posix()
