"""A Hugging Face hub on this machine with one data set of plain JSON; as a program it is read in three ways.

A program, since `huggingface_hub` reads its environment when it is imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

NAME, COMMIT = "some/texts", "1" * 40
FILES = {
    "README.md": b"# Texts\n",
    "a.jsonl": b'{"text": "a", "lab": null}\n{"text": "b", "lab": "x"}\n',
    "b.jsonl": b'{"text": "2024-01-01", "lab": {"k": 1}, "more": 1}\n',
}


class Handler(BaseHTTPRequestHandler):
    """Answers what opening and reading a data set asks of the hub."""

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        file = re.fullmatch(f"/datasets/{NAME}/resolve/[^/]+/(.*)", path)
        if re.fullmatch(f"/api/datasets/{NAME}(/revision/.*)?", path):
            self.answer_json({"id": NAME, "_id": "1", "sha": COMMIT, "private": False, "tags": []})
        elif path == f"/api/datasets/{NAME}/tree/{COMMIT}":
            self.answer_json([{"type": "file", "path": f, "size": len(b), "oid": sha1(b)} for f, b in FILES.items()])
        elif file and (content := FILES.get(file[1])) is not None:
            self.answer(200, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{sha1(content)}"'})
        else:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET

    def answer_json(self, value: object) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


def sha1(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": sys.argv[1]}
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN"):
        os.environ.pop(name, None)
    import datasets
    import huggingface_hub

    from mlrun.data.huggingface import HubSource
    from mlrun.data.text.hub import HubCorpus

    def read(streaming: bool) -> dict[str, object]:
        corpus = HubCorpus([HubSource(path=NAME)], [], None, 0.0, streaming)
        return {"facts": corpus.facts()["sources"][0], "texts": [row["text"] for row in corpus.rows()]}

    found = {"packed": read(False), "streamed": read(True)}
    server.shutdown()
    # What HF_HUB_OFFLINE=1 sets; without it, it is tried for a minute whether the hub comes back.
    datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    print(json.dumps(found | {"away": read(False)}))


if __name__ == "__main__":
    main()
