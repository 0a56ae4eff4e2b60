#!/bin/sh
# sh install.sh PYTHON FOLDER [EXTRA]: a virtual environment in FOLDER with the course in it, and with an extra of
# pyproject.toml such as '[test]'. Where the system lacks something, the last lines say what to install.
python=$1 folder=$2 extra=$3

stop() {
    printf '\n' >&2
    printf '%s\n' "$@" >&2
    exit 1
}

"$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || stop \
    "The course needs Python 3.10 to 3.13; '$python' is $("$python" --version 2>/dev/null || echo missing)." \
    "Install one of these (Debian, Ubuntu: sudo apt-get install python3 python3-venv), or name it: make lab PYTHON=python3.12"

"$python" -c 'import venv, ensurepip' 2>/dev/null || stop \
    "This Python cannot make virtual environments." \
    "Debian, Ubuntu: sudo apt-get install python3-venv        Fedora: sudo dnf install python3-pip"

# A complete environment is kept: installing again only adds what is new in pyproject.toml.
"$folder/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$folder" || exit 1

"$folder/bin/python" -m pip install --editable ".$extra" || stop \
    "pip could not install the course; its own message is above." \
    "If it speaks of the network: connect once, later nothing is downloaded. If it speaks of space: 8 GB are needed." \
    "If it speaks of a compiler (gcc): sudo apt-get install build-essential python3-dev"

"$folder/bin/python" -c 'import cv2' || stop \
    "OpenCV, which Ultralytics reads images with, lacks a library of the system." \
    "Debian, Ubuntu: sudo apt-get install libgl1 libglib2.0-0        Fedora: sudo dnf install mesa-libGL glib2"
