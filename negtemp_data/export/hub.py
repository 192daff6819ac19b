"""Uploading an export to the Hugging Face hub, by the hub's own library."""

from pathlib import Path

from negtemp_data.errors import ExportError, RunError


def check_hub(repo: str) -> None:
    """Finds out before the work whether an upload can begin, without touching the network.

    Raises:
        ExportError: The name is no name of a repository, or nobody is logged in.
    """
    from huggingface_hub import get_token  # noqa: PLC0415
    from huggingface_hub.errors import HFValidationError  # noqa: PLC0415
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined] # noqa: PLC0415

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        reason = " ".join(str(error).split())
        raise ExportError(f"--push-to-hub {repo}: {reason}") from error
    if get_token() is None:
        raise ExportError(
            f"--push-to-hub {repo}: nobody is logged in to the Hugging Face hub; run `hf auth "
            "login`, or set HF_TOKEN."
        )


def push_folder(folder: Path, repo: str) -> str:
    """Uploads an export as a data set, made if it is missing; its address.

    Raises:
        RunError: The hub refused or was not reached; the export stays where it is.
    """
    import httpx  # noqa: PLC0415
    from huggingface_hub import HfApi  # noqa: PLC0415
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415

    api = HfApi()
    try:
        url = api.create_repo(repo, repo_type="dataset", exist_ok=True)
        api.upload_folder(
            repo_id=url.repo_id,
            folder_path=folder,
            repo_type="dataset",
            commit_message="Data set exported by negtemp",
        )
    except (HfHubHTTPError, httpx.HTTPError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [repr(error)])[0]
        raise RunError(
            f"--push-to-hub {repo}: the upload failed: {reason} The export is in {folder}; upload "
            f"it with `hf upload {repo} {folder} --repo-type dataset`."
        ) from error
    return str(url)
