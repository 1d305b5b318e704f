"""A real registry on loopback, and small images to push to it."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import zstandard
from small_rootfs import make_rootfs

TOOLS = ("docker-registry", "skopeo")
MISSING = [name for name in TOOLS if shutil.which(name) is None]
_START_TIMEOUT_S = 20.0
_MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json, "
    "application/vnd.docker.distribution.manifest.v2+json"
)


HERE = "amd64" if os.uname().machine == "x86_64" else "arm64"
ELSEWHERE = "arm64" if HERE == "amd64" else "amd64"
_PACKINGS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "gzip": (lambda data: gzip.compress(data, 1, mtime=0), "+gzip"),
    "zstd": (zstandard.ZstdCompressor().compress, "+zstd"),
    "none": (bytes, ""),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """Where it listens and where its files lie."""

    host: str
    folder: Path

    def push(self, layout: Path, name: str, *, form: str = "oci") -> None:
        """Push the image of an OCI layout under ``name``, as OCI or Docker (v2s2) has it."""
        subprocess.run(
            [
                *("skopeo", "copy", "--quiet", "--dest-tls-verify=false", "--format", form),
                *(f"oci:{layout}:image", f"docker://{self.host}/{name}"),
            ],
            check=True,
            capture_output=True,
            timeout=60,
        )

    def manifest(self, name: str, reference: str) -> bytes:
        """The manifest of an image, by tag or digest."""
        request = urllib.request.Request(
            f"http://{self.host}/v2/{name}/manifests/{reference}", headers={"Accept": _MANIFESTS}
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            return bytes(answer.read())

    def push_index(self, name: str, tag: str, entries: list[tuple[bytes, str]]) -> None:
        """Push an index of manifests, each with the architecture that it is for."""
        rows = [
            {
                "mediaType": json.loads(data)["mediaType"],
                "digest": f"sha256:{hashlib.sha256(data).hexdigest()}",
                "size": len(data),
                "platform": {"os": "linux", "architecture": architecture},
            }
            for data, architecture in entries
        ]
        kind = "application/vnd.oci.image.index.v1+json"
        body = json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": rows}).encode()
        request = urllib.request.Request(
            f"http://{self.host}/v2/{name}/manifests/{tag}",
            data=body,
            headers={"Content-Type": kind},
            method="PUT",
        )
        urllib.request.urlopen(request, timeout=20).close()

    def blob(self, digest: str) -> Path:
        """The file of a blob."""
        digits = digest.removeprefix("sha256:")
        return self.folder / f"docker/registry/v2/blobs/sha256/{digits[:2]}/{digits}/data"


@contextmanager
def registry(folder: Path) -> Iterator[Registry]:
    """Run a registry until the context is left."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    folder.mkdir(parents=True)
    config = folder / "config.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nhttp: {{addr: '{host}'}}\n"
        f"storage: {{filesystem: {{rootdirectory: '{folder}'}}}}\n"
    )
    process = subprocess.Popen(
        ["docker-registry", "serve", str(config)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(host)
        yield Registry(host=host, folder=folder)
    finally:
        process.kill()
        process.wait()


def _wait_for(host: str) -> None:
    name, _, port = host.partition(":")
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        try:
            socket.create_connection((name, int(port)), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError("docker-registry did not come up")


def tar_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """A tarball of ``members``."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return target.getvalue()


def entry(
    name: str,
    data: bytes = b"",
    *,
    kind: bytes = tarfile.REGTYPE,
    link: str = "",
    mode: int = 0o644,
) -> tuple[tarfile.TarInfo, bytes]:
    """A member of a tarball; a name that ends in a slash is a folder."""
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE if name.endswith("/") else kind
    info.mode = 0o755 if name.endswith("/") else mode
    info.size, info.linkname = len(data), link
    return info, data


def base_layer(folder: Path) -> bytes:
    """A root file system with a shell, as a layer."""
    rootfs = make_rootfs(folder)
    (rootfs / "etc/passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\nworker:x:1234:1235::/home:/bin/sh\n"
    )
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        tar.add(rootfs, ".")
    return target.getvalue()


def write_layout(
    layout: Path,
    layers: list[bytes],
    *,
    diff_ids: list[str] | None = None,
    packing: str = "gzip",
    architecture: str = "",
    **config: object,
) -> list[str]:
    """Write an OCI layout of uncompressed ``layers``; return the digests of its blobs.

    Args:
        layout: the folder, which is made.
        layers: tarballs, the bottommost first.
        diff_ids: replaces what the configuration says of the layers.
        packing: gzip, zstd or none.
        architecture: this machine's if empty.
        config: of the image: ``Env``, ``User`` and so on.
    """
    blobs = layout / "blobs/sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes, media_type: str) -> dict[str, object]:
        digits = hashlib.sha256(data).hexdigest()
        (blobs / digits).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digits}", "size": len(data)}

    oci = "application/vnd.oci.image"
    pack, suffix = _PACKINGS[packing]
    packed = [put(pack(layer), f"{oci}.layer.v1.tar{suffix}") for layer in layers]
    ids = diff_ids or [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
    body = {
        "architecture": architecture or HERE,
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": ids},
        "history": [{"created_by": "test"} for _ in layers],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{oci}.manifest.v1+json",
        "config": put(json.dumps(body).encode(), f"{oci}.config.v1+json"),
        "layers": packed,
    }
    top = put(json.dumps(manifest).encode(), f"{oci}.manifest.v1+json")
    top["annotations"] = {"org.opencontainers.image.ref.name": "image"}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [top]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return [str(blob["digest"]) for blob in packed]
