"""``adb:SERIAL`` and ``adb:SERIAL/PACKAGE``: a phone, by the Android Debug Bridge's own client.

With a package, the bundle becomes ``files/pocketfed/NAME-VERSION.bundle`` in the data of this app, which has to be
debuggable (``run-as``); without one, ``/data/local/tmp/pocketfed/NAME-VERSION.bundle``. Its hashes are compared there.
The self-test is the app's, and so is the refusal of downgrades.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from device_runtime.errors import InputError, NetworkError, PocketfedError
from export.flashing.plan import Command, Finished, Load, Plan, check_hashes

_SHARED = "/data/local/tmp"
_FOLDER = "pocketfed"


@dataclass(frozen=True)
class Phone:
    """A phone or emulator, and the app on it; `package` is empty where there is none."""

    name: str
    serial: str
    package: str

    def plan(self, load: Load) -> Plan:
        staging = f"{_SHARED}/pocketfed-{load.token}"
        hashes = f"sha256sum {shlex.join(load.hashes)}"
        home = f"files/{_FOLDER}" if self.package else f"{_SHARED}/{_FOLDER}"
        # `run-as` starts in the app's own folder. What is copied is verified there, and only then takes its place.
        copy = f"mkdir -p {home} && cd {home} && rm -rf .fresh .old && cp -R {staging} .fresh && cd .fresh && {hashes}"
        place = (
            f"cd {home} && if [ -e {load.name} ]; then mv {load.name} .old; fi && mv .fresh {load.name} && sync"
            " && rm -rf .old"
        )
        push = self._adb("push", *(str(load.bundle.file(name)) for name in load.bundle.files), f"{staging}/")
        check = check_hashes(load, self.name)
        return Plan(
            self.name,
            [
                Command("find", self._adb("get-state"), self._failed, self._found),
                Command("prepare", self._adb("shell", f"mkdir -p {staging}"), self._failed),
                Command("copy", push, self._failed),
                Command(
                    "verify", self._adb("shell", f"cd {staging} && chmod -R a+rX . && {hashes}"), self._failed, check
                ),
                Command("install", self._as_the_app(copy), self._failed, check),
                Command(
                    "place", self._as_the_app(place), self._failed, lambda _: f"{home}/{load.name}: verified there"
                ),
            ],
            Command("clean", self._adb("shell", f"rm -rf {staging}"), self._failed),
        )

    def _adb(self, *arguments: str) -> tuple[str, ...]:
        return ("adb", "-s", self.serial, *arguments)

    def _as_the_app(self, script: str) -> tuple[str, ...]:
        if not self.package:
            return self._adb("shell", script)
        return self._adb("shell", f"run-as {self.package} sh -c {shlex.quote(script)}")

    def _found(self, finished: Finished) -> str:
        state = finished.output.strip()
        if state != "device":
            raise NetworkError(
                f"{self.name}: the phone is in the state {state!r}; 'adb devices' lists what is connected"
            )
        return ""

    def _failed(self, finished: Finished) -> PocketfedError:
        told = [line.strip() for line in (finished.output + finished.errors).splitlines() if line.strip()]
        reason = told[-1] if told else f"adb ended with status {finished.code}"
        for line in told:
            if "unauthorized" in line:
                return NetworkError(
                    f"{self.name}: {line}: the phone does not trust this computer; answer the question on its screen"
                )
            if line.startswith(("error: device", "adb: device", "error: no devices")):
                return NetworkError(f"{self.name}: {line}; 'adb devices' lists what is connected")
            if line.startswith("run-as:"):
                return InputError(f"{self.name}: {line}; expected an app that is installed there and debuggable")
        return InputError(f"{self.name}: {reason}")
