"""An exported folder on the Hugging Face hub."""

from pathlib import Path

from robustft.common.errors import UserError
from robustft.common.wording import first_line


def check(repository: str) -> None:
    """Refuse a name that the hub would not take.

    Raises:
        UserError: says what it would.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UserError(f"--push={repository}: no name of a repository. Expected OWNER/NAME") from error
    if "/" not in repository:
        raise UserError(f"--push={repository}: expected OWNER/NAME")


def push(folder: Path, repository: str) -> int:
    """Upload a folder, or say what would be uploaded where nobody is logged in; the exit status.

    Raises:
        UserError: the hub did not take it; the folder stays.
    """
    from huggingface_hub import HfApi, get_token

    inside = sorted(path for path in folder.rglob("*") if path.is_file())
    if get_token() is None:
        print(f"not uploaded: nobody is logged in to the Hugging Face hub. It would put into {repository}:")
        for path in inside:
            print(f"  {path.relative_to(folder)}  {path.stat().st_size:,} bytes")
        print(f"To upload it: hf auth login, then hf upload {repository} {folder}")
        return 1
    api = HfApi()
    try:
        address = api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Model of a robustft run")
    except Exception as error:  # whatever the network or the hub says
        raise UserError(
            f"--push={repository}: the hub did not take it ({first_line(error)}). {folder} is complete; again: hf"
            f" upload {repository} {folder}"
        ) from error
    print(f"uploaded: {address}")
    return 0
