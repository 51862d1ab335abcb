"""The ways in which programs are told of the listeners that they inherit. Standard library alone.

A style is a module, and a line in this table.
"""

from multibinder.launch.styles.einhorn import Einhorn
from multibinder.launch.styles.nginx import Nginx
from multibinder.launch.styles.php_fpm import PhpFpm
from multibinder.launch.styles.puma import Puma
from multibinder.launch.styles.server_starter import ServerStarter
from multibinder.launch.styles.stdin import Stdin
from multibinder.launch.styles.style import Style
from multibinder.launch.styles.systemd import Systemd
from multibinder.launch.styles.unicorn import Unicorn

STYLES: "dict[str, Style]" = {
    style.name: style
    for style in (Systemd(), Nginx(), Einhorn(), ServerStarter(), Puma(), Unicorn(), PhpFpm(), Stdin())
}
DEFAULT_STYLE = "systemd"

__all__ = ["DEFAULT_STYLE", "STYLES", "Style"]
