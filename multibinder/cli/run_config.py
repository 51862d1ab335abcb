"""Print the settings of an instance of ``run`` as they are now: ``run`` executes this module at a reload."""

from __future__ import annotations

import sys

import msgspec

from multibinder import MultibinderError
from multibinder.launch import binds
from multibinder.launch.errors import LaunchError
from multibinder.launch.run import config
from multibinder.launch.run.options import overlaid, settings_of
from multibinder.launch.run.settings import RunSettings


def main() -> None:
    """Read the file that the settings in the first argument name. An error is a sentence, and exit code 1."""
    settings = RunSettings.of_text(sys.argv[1])
    if settings.config is None:
        sys.exit("no file of settings is named")
    try:
        options, _ = config.read(settings.config, binds.parse_all)
        sys.stdout.write(msgspec.json.encode(settings_of(overlaid(options, settings.given))).decode())
    except (LaunchError, MultibinderError) as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(f"{error.filename or settings.config}: {error.strerror or error}")


if __name__ == "__main__":
    main()
