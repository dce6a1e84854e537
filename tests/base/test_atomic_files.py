import os
import subprocess
import sys
from pathlib import Path

# A shell gives names as bytes, whatever the locale is.
WRITE = "import sys; from d3cli.base import atomic_files; from pathlib import Path; "
WRITE += "atomic_files.replace_file(Path(sys.argv[1]), 'text')"
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_a_name_beyond_ascii_can_be_written_in_the_c_locale(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/" + "räksmörgås \N{OWL}".encode()
    subprocess.run([sys.executable, "-c", WRITE, name], env=os.environ | ASCII, check=True)
    assert os.listdir(os.fsencode(tmp_path)) == [os.path.basename(name)]  # noqa: PTH208, PTH119
