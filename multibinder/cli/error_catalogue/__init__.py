"""The catalogue of all errors that an operator can meet, each with its cause and remedy: the source of docs/errors.md.

A test compares the entries with the code in both directions: each error that is raised or logged has an entry, and each
entry is about an error that exists. 'make docs' writes the page.
"""

from multibinder.cli.error_catalogue.adopt import ADOPT
from multibinder.cli.error_catalogue.entry import ErrorEntry, Section
from multibinder.cli.error_catalogue.events import EVENTS
from multibinder.cli.error_catalogue.exec import EXEC
from multibinder.cli.error_catalogue.haproxy import HAPROXY, OTHERS_MESSAGES
from multibinder.cli.error_catalogue.messages import BIND, CLIENT, COMMANDS, POLICY, PROTOCOL, START
from multibinder.cli.error_catalogue.namespaces import NAMESPACES
from multibinder.cli.error_catalogue.run import RUN
from multibinder.cli.error_catalogue.servers import SERVERS
from multibinder.cli.error_catalogue.takeover import TAKEOVER

SECTIONS = (
    CLIENT,
    SERVERS,
    BIND,
    ADOPT,
    NAMESPACES,
    START,
    POLICY,
    COMMANDS,
    EXEC,
    HAPROXY,
    RUN,
    TAKEOVER,
    EVENTS,
    PROTOCOL,
    OTHERS_MESSAGES,
)

__all__ = ["EVENTS", "OTHERS_MESSAGES", "SECTIONS", "ErrorEntry", "Section"]
