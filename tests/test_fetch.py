"""Downloads from a host that drops connections, lies about lengths, answers with web pages or not at all."""
import contextlib
import http.server
import hashlib
import threading
from pathlib import Path

import pytest

import data
import envs
from config import UserError, build
from tools.official import fetch, files

CONTENT = b"\x89HDF" + bytes(range(256)) * 4000
LIFT = envs.find_task("lift")


class Host(http.server.BaseHTTPRequestHandler):
    """The first folder of the path says how the host behaves."""
    served = []

    def do_GET(self):
        how = self.path.split("/")[1]
        self.served.append((self.path, self.headers.get("Range")))
        start = int(self.headers["Range"][6:-1]) if "Range" in self.headers else 0
        if how == "missing":
            return self.send_error(404)
        whole = b"<html>sorry</html>" if how in ("html", "sly") else CONTENT
        body = whole if how in ("html", "sly", "restarts") else whole[start:]
        self.send_response(206 if start and how != "restarts" else 200)
        if how != "nolength":
            self.send_header("Content-Length", str(len(body) + dict(longer=1000, shorter=-1000).get(how, 0)))
        if start:
            begin = start - 1 if how == "shifted" else start
            self.send_header("Content-Range", f"bytes {begin}-{len(CONTENT) - 1}/{len(CONTENT) + (how == 'another')}")
        self.send_header("Content-Type", "text/html" if how == "html" else "application/octet-stream")
        self.end_headers()
        body = body[: -(-len(body) // 2)] if how == "drops" else body[:5000] if how == "stalls" else body
        with contextlib.suppress(OSError):                           # whoever asked wants the rest alone
            self.wfile.write(body)
        if how == "stalls":
            self.server.patience.wait(5)

    def log_message(self, *_):
        pass


@pytest.fixture
def host():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Host)
    server.patience = threading.Event()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    Host.served.clear()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.patience.set()
    server.shutdown()


def left(path: Path) -> list[str]:
    return sorted(p.name for p in path.parent.iterdir())


def test_interrupted_download_goes_on_where_it_stopped(host, tmp_path):
    path, half = tmp_path / "sub" / "x.hdf5", len(CONTENT) // 2
    with pytest.raises(OSError, match=f"ended after {half} of {len(CONTENT)} bytes"):
        fetch.download(host + "drops", path)
    assert left(path) == [f"x.hdf5.{len(CONTENT)}.part"]
    fetch.download(host + "good", path)
    assert path.read_bytes() == CONTENT and left(path) == ["x.hdf5"]
    assert Host.served[1:] == [("/good", None), ("/good", f"bytes={half}-")]       # how long is it now; the rest


@pytest.mark.parametrize("how, length, part", [
    *((how, len(CONTENT), CONTENT[:9000]) for how in ("restarts", "another", "shifted", "nolength")),
    ("good", len(CONTENT), CONTENT + b"more"), ("good", 7, b"")])
def test_a_part_that_cannot_be_gone_on_with_starts_over(host, tmp_path, how, length, part):
    """The host ignores the range, has a file of another length, sends other bytes than asked for, or announces no
    length; or the part is longer than the file, or of another one."""
    path = tmp_path / "x.hdf5"
    (tmp_path / f"x.hdf5.{length}.part").write_bytes(part)
    fetch.download(host + how, path)
    assert path.read_bytes() == CONTENT and left(path) == ["x.hdf5"]


@pytest.mark.parametrize("how, says", [("html", "web page"), ("sly", "broken file: 18 bytes"), ("missing", "404"),
                                       ("longer", "connection ended"), ("shorter", "broken file: 1023004 bytes"),
                                       ("stalls", "timed out")])
def test_nothing_but_the_whole_file_gets_the_final_name(host, tmp_path, how, says):
    def read(path):
        files.require(path.stat().st_size == len(CONTENT), f"{path.stat().st_size} bytes")
    with pytest.raises(OSError, match=says):
        fetch.download(host + how, tmp_path / "x.hdf5", timeout=0.3, read=read)
    assert not (tmp_path / "x.hdf5").exists()
    assert len(list(tmp_path.iterdir())) == (how in ("longer", "stalls"))      # what may still become the file


def get(folder, max_bytes=1e9, count=0):
    return fetch.fetch(LIFT, folder, max_bytes, count, lambda path, task: None)


def official(monkeypatch, *hosts, names=("r/x.hdf5",), elsewhere="/nowhere"):
    monkeypatch.setattr(fetch, "official", lambda task: (list(names), list(hosts), Path(elsewhere)))


def test_mirror_is_tried_reasons_are_told_and_files_are_remembered(host, tmp_path, monkeypatch):
    official(monkeypatch, host + "missing/", host + "good/")
    path = tmp_path / "robomimic/r/x.hdf5"
    assert get(tmp_path) == ([path], "")
    assert files.recorded(path) == dict(path=str(path), origin=dict(url=host + "good/r/x.hdf5"),
                                        sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    Host.served.clear()
    assert get(tmp_path)[0][0] == path and not Host.served                            # it is there now
    official(monkeypatch, host + "missing/", names=["r/y.hdf5"])
    assert get(tmp_path) == ([], f"{host.split('/')[2]}: HTTP Error 404: Not Found")
    official(monkeypatch, "http://127.0.0.1:1/", names=["r/y.hdf5"])
    assert "refused" in get(tmp_path)[1]


def test_a_host_that_keeps_dropping_is_asked_for_the_rest_while_it_gives(host, tmp_path, monkeypatch):
    official(monkeypatch, host + "drops/", host + "missing/")
    found, why = get(tmp_path)              # each try halves what is missing
    assert why == "" and found[0].read_bytes() == CONTENT and len(Host.served) > 10


def test_a_full_disk_keeps_what_has_come_for_the_next_time(host, small_disk, monkeypatch):
    disk, fill = small_disk
    official(monkeypatch, host + "good/", host + "missing/")
    (disk / "robomimic/r").mkdir(parents=True)
    fill(600_000)
    with pytest.raises(UserError, match=f"the disk of {disk}/robomimic is full"):
        get(disk)
    (disk / "filler").unlink()
    have = fetch.left_over(disk / "robomimic/r/x.hdf5")
    found, why = get(disk)
    assert 500_000 < have <= 600_000 and why == "" and found[0].read_bytes() == CONTENT
    assert Host.served[-1] == ("/good/r/x.hdf5", f"bytes={have}-")


def test_many_files_count_together(host, tmp_path, monkeypatch):
    names = [f"r/{i}.hdf5" for i in range(3)]
    official(monkeypatch, host + "good/", names=names)
    with pytest.raises(UserError, match="give --data official"):
        get(tmp_path, 2.5 * len(CONTENT))
    found, _ = get(tmp_path, 2.5 * len(CONTENT), count=2)                       # two of them are small enough
    assert [path.name for path in found] == ["0.hdf5", "1.hdf5"]
    assert len(get(tmp_path, 3.5 * len(CONTENT))[0]) == 3


def test_where_official_files_are():
    names, hosts, home = fetch.official(envs.find_task("cube-quadruple-task3"))
    assert len(names) == 100 and len(hosts) == 2
    assert names[99] == "cube-quadruple-play-100m-v0/cube-quadruple-play-v0-099.npz"
    assert fetch.official(envs.find_task("scene-task2"))[0] == ["scene-play-v0.npz"] and home == Path("~/.ogbench/data")
    names, hosts, home = fetch.official(envs.find_task("can"))
    hub = "https://huggingface.co/datasets/robomimic/robomimic_datasets/resolve/main/"
    assert hosts[0] + names[0] == hub + "v1.5/can/mh/low_dim_v15.hdf5"
    assert str(home / names[0]) == "~/.robomimic/can/mh/low_dim_v15.hdf5"


def test_broken_downloads_are_not_kept(host, tmp_path, monkeypatch):
    """The host sends the length it announces; only reading it shows what it is."""
    official(monkeypatch, host + "good/")
    with pytest.raises(UserError, match="could not be obtained .*the host sent a broken file: it is no HDF5 file"):
        data.load(build(dict(task="lift", data="official", data_dir=str(tmp_path))))
    assert not list(tmp_path.glob("robomimic/r/*"))
