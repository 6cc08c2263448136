"""`minires lessons bundle`: all that a class without a network needs, in one folder.

notebooks/   the students work in these
pages/       the teacher reads these: delete this folder before students get the rest
wheels/      this package and all packages that it needs, for all computers asked for
README.md    what to type
"""

import base64
import csv
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import minires
from minires.commands import lesson_pages
from minires.commands.lessons import folder, lessons

PLATFORMS = {
    "windows": ["win_amd64"],
    "macos": ["macosx_11_0_arm64", "macosx_12_0_arm64", "macosx_14_0_arm64"],
    "macos-intel": ["macosx_10_13_x86_64", "macosx_11_0_x86_64", "macosx_12_0_x86_64"],
    "linux": ["manylinux2014_x86_64", "manylinux_2_27_x86_64", "manylinux_2_28_x86_64"],
    "linux-arm": ["manylinux2014_aarch64", "manylinux_2_27_aarch64", "manylinux_2_28_aarch64"],
}
# Besides the packages of minires[teach], a class needs a program that opens notebooks.
NEEDS = ("jupyterlab",)
# A package asks what kind of computer it is on before it says what it needs there. These are the
# answers, by the beginning of the computer's platform tag.
SYSTEMS = {
    "win": {"os_name": "nt", "sys_platform": "win32", "platform_system": "Windows"},
    "macosx": {"os_name": "posix", "sys_platform": "darwin", "platform_system": "Darwin"},
    "": {"os_name": "posix", "sys_platform": "linux", "platform_system": "Linux"},
}
# pip takes wheels for another computer, but asks this one what it needs. So it is given the answers
# of the other.
PIP_ELSEWHERE = """
import json, sys
from pip._internal.cli.main import main
from pip._vendor.packaging import markers
here, answers = markers.default_environment, json.loads(sys.argv[1])
markers.default_environment = lambda: {**here(), **answers}
sys.exit(main(sys.argv[2:]))
"""
# These files in an installed package were written by the installer; a wheel does not have them.
OWN_FILES = {"INSTALLER", "REQUESTED", "direct_url.json", "RECORD"}


def bundle(
    out: Path, platforms: list[str], pythons: list[str], pages: bool = True, replace: bool = False
) -> int:
    """Fill a folder for a class without a network.

    out         the folder
    platforms   names in PLATFORMS, or tags that pip understands
    pythons     versions of Python, such as "3.12"
    pages       whether to run the lessons, for the teacher's pages
    replace     replace notebooks that exist already
    Returns     0; 1 when wheels could not be downloaded (notebooks and pages are made)
    Raises      ValueError when notebooks exist already; RuntimeError when a lesson does not run
    """
    everything = lessons()
    lesson_pages.build(everything, out / "notebooks", False, False, replace)
    if pages:
        lesson_pages.build(everything, out / "pages", True, True, True)
    shutil.copyfile(folder() / "README.md", out / "README.md")
    wheels = out / "wheels"
    wheels.mkdir(exist_ok=True)
    reasons = []
    try:
        wheel = own_wheel(wheels)
    except RuntimeError as error:
        reasons.append(str(error))
    else:
        for version in pythons:
            for platform in platforms:
                reason = _download(wheel, wheels, platform, version)
                told = f"failed: {reason}" if reason else "there"
                print(f"wheels for {platform}, Python {version}: {told}", flush=True)
                reasons += [f"{platform}, Python {version}: {reason}"] if reason else []
    total = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {total / 1e6:.0f} MB")
    if reasons:
        print(
            "\nNotebooks and pages are made, but the wheels are not complete. Give this command "
            "again with --replace when there is a network. What went wrong:\n  "
            + "\n  ".join(reasons),
            file=sys.stderr,
        )
    return 1 if reasons else 0


def own_wheel(place: Path) -> Path:
    """This package as a wheel: built in a checkout, else packed again from the installed files.

    place     folder to write to
    Returns   the wheel's path
    Raises    RuntimeError when it cannot be built
    """
    root = Path(minires.__file__).resolve().parent.parent
    if not (root / "pyproject.toml").is_file():
        return _repack(metadata.distribution("minires"), place)
    reason = _pip(
        "wheel", "--quiet", "--no-deps", "--disable-pip-version-check", "-w", str(place), str(root)
    )
    built = sorted(place.glob(f"minires-{minires.__version__}-*.whl"))
    if reason or not built:
        raise RuntimeError(f"the wheel of minires could not be built: {reason}")
    return built[-1]


def _repack(distribution, place):
    """The wheel that a distribution was installed from, without the installer's own files."""
    tag = "py3-none-any"
    path = place / f"{distribution.name}-{distribution.version}-{tag}.whl"
    rows = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        info = None
        for file in distribution.files or ():
            inside = file.parts[0].endswith(".dist-info")
            if inside:
                info = file.parts[0]
            if file.parts[0] == ".." or "__pycache__" in file.parts or file.is_absolute():
                continue
            if inside and file.name in OWN_FILES:
                continue
            content = Path(file.locate()).read_bytes()
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
            rows.append((file.as_posix(), f"sha256={digest.decode()}", len(content)))
            archive.writestr(file.as_posix(), content)
        if info is None:
            raise RuntimeError("minires is not installed from a wheel: pip install it first")
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([*rows, (f"{info}/RECORD", "", "")])
        archive.writestr(f"{info}/RECORD", text.getvalue())
    return path


def _download(wheel, wheels, platform, version):
    """Download what a computer of one kind needs. Returns why it failed, or ""."""
    tags = PLATFORMS.get(platform, [platform])
    system = next(own for start, own in SYSTEMS.items() if tags[0].startswith(start))
    machine = re.search("x86_64|amd64|arm64|aarch64|$", tags[0])[0]
    answers = system | {
        "platform_machine": "AMD64" if machine == "amd64" else machine,
        "python_version": version,
        "python_full_version": f"{version}.0",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    return _pip(
        "download", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:",
        "--python-version", version, "--implementation", "cp",
        *[part for tag in tags for part in ("--platform", tag)],
        "-d", str(wheels), f"{wheel}[teach]", *NEEDS, answers=answers,
    )  # fmt: skip


def _pip(*arguments, answers=None):
    """Run pip, perhaps with another computer's answers. Returns "" or, in a line, why it failed."""
    program = ["-m", "pip"] if answers is None else ["-c", PIP_ELSEWHERE, json.dumps(answers)]
    try:
        done = subprocess.run(
            [sys.executable, *program, *arguments], capture_output=True, text=True, check=False
        )
    except OSError as error:
        return str(error)
    if done.returncode == 0:
        return ""
    if "No module named pip" in done.stderr:
        return "this Python has no pip: python -m ensurepip"
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or [f"pip ended with {done.returncode}"])[-1]
