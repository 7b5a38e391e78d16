# SPDX-License-Identifier: MIT
"""Reading the configuration again while the server runs.

It is read and checked as a whole before anything changes. An export in use stays as it is until its
last client has left: then it goes, or has its new settings for the next one.
"""

import logging
from collections.abc import Callable
from functools import partial

from swiftnbd.cli.loading import Loader
from swiftnbd.cli.plan import Plan
from swiftnbd.errors import SwiftnbdError
from swiftnbd.export.base import BaseExport
from swiftnbd.server.config import ExportConfig
from swiftnbd.server.server import Server
from swiftnbd.units import counted

log = logging.getLogger(__name__)


class Reloader:
    """Brings a server from one ``plan`` to the next."""

    def __init__(
        self,
        plan: Plan,
        read: Callable[[], Plan],
        make: Callable[[ExportConfig], BaseExport],
        loader: Loader,
        server: Server,
    ) -> None:
        """``read`` and ``make`` raise `SwiftnbdError` for what cannot be used."""
        self._configs = {config.name: config for config in plan.exports}
        self._read = read
        self._make = make
        self._loader = loader
        self._server = server

    def reload(self) -> None:
        """Read everything again and do what follows from it, or nothing; the log says what."""
        self._server.supervision.reloading()
        try:
            self._reload()
        finally:
            self._server.supervision.ready()

    def _reload(self) -> None:
        log.info("reading the configuration again")
        try:
            plan = self._read()
            use = self._server.change(plan.server.tls, plan.server.export_access)
            new = [self._make(config) for config in plan.exports if self._is_new(config)]
        except (SwiftnbdError, OSError) as error:
            log.error("the configuration cannot be used, so nothing is changed: %s", error)
            return
        use()
        self._configs = {config.name: config for config in plan.exports}
        self._loader.put_in_order(list(self._configs))
        for export in new:
            self._add(export)
        self._remove_others()
        log.info("the configuration is read again: %s", counted(len(self._configs), "export"))

    def _is_new(self, config: ExportConfig) -> bool:
        """Whether it was not there, is not served for a reason that may be over, or is changed."""
        loader = self._loader
        is_known = config.name in loader.ready or config.name in loader.coming
        return not is_known or self._configs.get(config.name) != config

    def _add(self, new: BaseExport) -> None:
        loader, name = self._loader, new.name
        if name in loader.ready:
            old = loader.ready[name]
            at_once = old.turns.when_idle(partial(self._change, old, new))
            log.info("%s: changed%s", name, "" if at_once else "; in use, so for its next client")
            return
        if name in loader.coming:
            loader.forget(name)
        log.info("%s: added", name)
        loader.add(new)

    def _change(self, old: BaseExport, new: BaseExport) -> None:
        if type(old) is type(new):
            old.change(new)
            self._loader.check(old)
        else:  # a container of a name that a plugin had, or the reverse
            self._loader.drop(old)
            self._loader.add(new)

    def _remove_others(self) -> None:
        loader = self._loader
        for name in [name for name in loader.coming if name not in self._configs]:
            loader.forget(name)
            log.info("%s: removed", name)
        for export in [each for each in loader.ready.values() if each.name not in self._configs]:
            if not export.turns.when_idle(partial(self._remove, export)):
                log.info("%s: in use, so it is removed when its client has left", export.name)

    def _remove(self, export: BaseExport) -> None:
        self._loader.drop(export)
        log.info("%s: removed", export.name)
