# SPDX-License-Identifier: MIT
"""From where a container's login comes: its section of the secrets file, the command line, the
environment, clouds.yaml. docs/authentication.md says this for users.

* A section that says where to log in (``auth-url`` or ``cloud``) is complete in itself.
* One that only says who logs in takes the rest from the command line; and if that does not say
  where, from the environment. So variables that happen to be set never change a login of ``-a``.
* A bucket of an object store (``s3://...``) takes what it lacks from the variables of its service's
  own tools, as everybody's do.
* Whatever says neither is filled up from the command line, then from the environment.
"""

from collections.abc import Mapping

from swiftnbd.cli.environment import (
    from_environment,
    rest_of_environment,
    secret_of_environment,
)
from swiftnbd.cli.login import LoginKeys, settings_of
from swiftnbd.store.bucket_settings import BucketSettings, is_bucket_url
from swiftnbd.store.login import LoginSettings


def login_of(
    section: LoginKeys, flags: LoginKeys, environ: Mapping[str, str]
) -> LoginSettings | BucketSettings:
    """The login of a container. ConfigError if these do not make one."""
    place = section if section.says_where else section.over(flags)
    if is_bucket_url(place.get("auth-url")):
        from swiftnbd.cli.buckets import bucket_of

        return bucket_of(place, environ)
    if section.says_where:
        return settings_of(section)
    keys = section.over(flags)
    if not flags.says_where:
        keys = keys.over(from_environment(environ))
    elif not section.says_who and not flags.get("cloud"):
        keys = keys.over(rest_of_environment(environ))
    if keys.get("cloud") and not section.says_who:
        keys = keys.over(secret_of_environment(environ))
    return settings_of(keys)


def has_login(flags: LoginKeys, environ: Mapping[str, str], *, ambient: bool) -> bool:
    """Whether containers without a section have a login. ``ambient`` False: the environment
    alone does not count."""
    if flags.get("cloud") or is_bucket_url(flags.get("auth-url")):
        return True
    if flags.says_where:
        return flags.says_who or rest_of_environment(environ).says_who
    return ambient and from_environment(environ).says_where
