"""What a model's directory holds: which weights run, and what lies beside them."""

from pathlib import Path

from d3cli.base.errors import ModelError
from d3cli.files.fingerprint import same_weights
from d3cli.files.safetensors import (
    INDEX,
    SINGLE_FILE,
    shards_of_index,
    unused_shards,
    weight_files,
)


def choice_of_weights(directory: Path, *, from_hub: bool) -> list[str]:
    """Notes about weights beside those that run. The directory has been checked by `vet_files`.

    Args:
        from_hub: the directory is a copy of a repository, whose owner published it as it is. Then
            `model.safetensors` runs, as in transformers.

    Raises:
        ModelError: the directory holds two models, and either may be out of date.
    """
    used, shards = weight_files(directory), shards_of_index(directory)
    unused = unused_shards(directory)
    if used == shards or not shards:
        return []
    if not unused:
        return [f"{INDEX} names files that are not there, so {SINGLE_FILE} runs alone"]
    if same_weights(directory, used, unused):
        return []
    more = f" and {len(unused) - 1} more" if len(unused) > 1 else ""
    others = f"{unused[0]}{more}, which {INDEX} lists"
    if from_hub:
        return [f"{SINGLE_FILE} runs, as in transformers; the repository also holds {others}"]
    newest = max(unused, key=lambda name: (directory / name).stat().st_mtime)
    newest = max(SINGLE_FILE, newest, key=lambda name: (directory / name).stat().st_mtime)
    raise ModelError(
        f"{directory} holds two models: {SINGLE_FILE}, and {others}",
        f"delete the files of one of them; {newest} was written last",
    )
