"""Nothing asks the network for anything: no probe, no download, no usage data."""

import json

import yolo_slim_lessons as slim

# Python tells an audit hook of every look-up and connection, whatever library asks, so that none goes unnoticed even
# where the library would swallow the error.
FORBID_SOCKETS = """
import sys
attempts = []

def forbid(event, arguments):
    if event.startswith("socket.") and event != "socket.gethostname":  # which asks nobody
        attempts.append(event)
        raise OSError(f"this test forbids {event}")

sys.addaudithook(forbid)
"""


def test_import_prediction_and_plain_ultralytics_need_no_network(nano, data, tmp_path, run_python):
    path = slim.save_model(nano, tmp_path / "nano.pt")
    answer = run_python(
        FORBID_SOCKETS
        + """
import json
import yolo_slim_lessons as slim
from ultralytics import YOLO

data = slim.load_images("fashion-mnist", image_size=64)
model = slim.new_model("yolov8n-cls.yaml", data.class_names)
slim.save_model(model, "fresh.pt")
ours = slim.predict(slim.load_model("nano"), data.test[:3], progress=False)
theirs = YOLO(sys.argv[1]).predict(data.test.images[0].permute(1, 2, 0).numpy(), project=sys.argv[2])
print(json.dumps({"attempts": attempts, "ours": tuple(ours.shape), "theirs": len(theirs[0].probs.data)}))
""",
        path,
        tmp_path / "runs",
    )
    # One line is all that was printed: neither banner nor progress nor warning came before it.
    assert json.loads(answer) == {"attempts": [], "ours": [3, 10], "theirs": 10}


def test_the_guard_of_this_test_notices_an_attempt(run_python):
    answer = run_python(
        FORBID_SOCKETS
        + """
import socket, urllib.request
for attempt in (
    lambda: urllib.request.urlopen("http://127.0.0.1:9"),
    lambda: socket.getaddrinfo("localhost", 9),
    lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"", ("127.0.0.1", 9)),
):
    try:
        attempt()
    except OSError as error:
        assert "forbids" in str(error)
    else:
        raise SystemExit("an attempt went through")
print(len(attempts) >= 3)
"""
    )
    assert answer.strip() == "True"
