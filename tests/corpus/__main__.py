"""`python -m tests.corpus`: the corpus on embedded servers, and a table of what was expected and what came."""

import os
import sys
import tempfile
from pathlib import Path

from deploy.local.servers import Servers
from shared.db import make_engine, make_sessions
from shared.migrations.upgrade import upgrade
from shared.observability import configure_logging
from shared.settings import load_settings
from shared.storage.objects import make_store
from shared.testing.web import Website
from tests.corpus.platform import PUBLIC, environment, running
from tests.corpus.run import all_cases, run, upload


def main() -> int:
    """Prints the table; the exit status is 1 if any case did not come out as expected."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Website(PUBLIC) as site,
        Servers(Path(folder) / "servers", durable=False) as servers,
    ):
        os.environ |= {**servers.environment, **environment(Path(folder), site)}
        settings = load_settings()
        configure_logging("corpus", "CRITICAL")
        engine = make_engine(settings.database_url.get_secret_value(), pool_size=10)
        upgrade(engine)
        store = make_store(settings)
        store.ensure_bucket()
        with running(settings, make_sessions(engine), store) as platform:
            cases = all_cases(site, upload(platform.stranger, b"another tenant's"), settings.s3_bucket)
            found = run(platform, cases)
        engine.dispose()
    print("| | sent as | expected | got |\n| --- | --- | --- | --- |")
    for case in cases:
        name = case.name.encode("unicode_escape").decode().replace("|", "\\|")
        print(f"| {name} | {case.how} | {case.expected[:60]} | {found[case.name][:60]} |")
    wrong = [case for case in cases if found[case.name] != case.expected]
    print(f"\n{len(cases)} cases, {len(wrong)} not as expected")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
