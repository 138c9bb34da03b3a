"""Settings: where each comes from, what is refused and how it is said, and that no secret is shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.errors import ConfigError
from ingest.sections import Connection, Http, Limits, Retry, StoreLimits
from ingest.settings import Settings, check_redis_url, load, rank_and_world, redact

Load = Callable[..., Settings]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Settings from the text of an ingest.toml and an environment of just these variables."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))

    def read(toml: str = "", **env: str) -> Settings:
        path = tmp_path / "test.toml"
        path.write_text(toml)
        return load({"INGEST_CONFIG": str(path), **env})

    return read


class TestLadder:
    RUNGS = ("connect_s", "stall_s", "soft_s", "hard_s", "visibility_s")

    def test_each_rung_is_above_the_one_before(self) -> None:
        limits = Limits()
        values = [getattr(limits, rung) for rung in self.RUNGS]
        assert values == sorted(set(values)) and values[0] > 0
        assert limits.renew_s * 3 <= limits.lease_s <= 12
        assert Retry().cap_s <= Retry().retry_after_cap_s < Retry().deadline_s

    @pytest.mark.parametrize("at", range(4))
    def test_two_rungs_that_are_equal_or_swapped_are_refused(self, at: int) -> None:
        low, high = self.RUNGS[at : at + 2]
        limits = Limits()
        for value in (getattr(limits, high), getattr(limits, high) + 1, 0.0, -1.0, float("nan")):
            with pytest.raises(ConfigError) as raised:
                dataclasses.replace(limits, **{low: value})
            assert low in str(raised.value)

    @pytest.mark.parametrize(
        "given", [{"lease_s": 12.1}, {"lease_s": 5.9}, {"renew_s": 4.1}, {"renew_s": 0.0}, {"wait_s": 0.0}]
    )
    def test_a_lease_holds_three_renewals_and_is_at_most_12_s(self, given: dict[str, float]) -> None:
        with pytest.raises(ConfigError, match="limits"):
            Limits(**given)

    @pytest.mark.parametrize(
        "given",
        [
            {"attempts": 0},
            {"deliveries": 0},
            {"base_s": -1.0},
            {"base_s": 61.0},
            {"cap_s": 90_000.0},
            {"retry_after_cap_s": 90_000.0},
            {"deadline_s": 30.0},
            {"retry_after_cap_s": -1.0},
            {"base_s": float("nan")},
        ],
    )
    def test_retries_that_make_no_sense(self, given: dict[str, float]) -> None:
        with pytest.raises(ConfigError, match="retry"):
            Retry(**given)  # type: ignore[arg-type]

    def test_numbers_that_would_stand_still(self) -> None:
        for make in (lambda: Http(chunk_bytes=0), lambda: Http(parallel=0), lambda: StoreLimits(max_file_bytes=0)):
            with pytest.raises(ConfigError):
                make()


class TestWhereFrom:
    def test_environment_before_file_before_default(self, config: Load, tmp_path: Path) -> None:
        toml = 'node = "from-file"\nprefix = "p:"\nconcurrency = 7\n[store]\nroot = "~/here"\nfresh_s = 5'
        found = config(toml, INGEST_NODE="from-env")
        assert (found.node, found.prefix, found.concurrency, found.log_format) == ("from-env", "p:", 7, "auto")
        assert (found.store.root, found.store.fresh_s) == (tmp_path / "here", 5.0)
        assert config(toml, INGEST_STORE="rel").store.root == tmp_path / "rel"
        assert config(toml, INGEST_CONCURRENCY="9").concurrency == 9
        assert found.config_path == tmp_path / "test.toml"

    def test_one_redis_for_all_unless_one_is_named(self, config: Load) -> None:
        found = config('result_url = "redis://r/2"', INGEST_REDIS_URL="redis://a/1", INGEST_LEDGER_URL="rediss://l/3")
        assert (found.redis_url, found.broker_url, found.result_url, found.ledger_url) == (
            "redis://a/1",
            "redis://a/1",
            "redis://r/2",
            "rediss://l/3",
        )

    def test_the_file_beside_us_is_found_then_the_one_at_home(self, config: Load, tmp_path: Path) -> None:
        assert load({}).config_path is None
        home = tmp_path / ".config/ingest/ingest.toml"
        home.parent.mkdir(parents=True)
        home.write_text('prefix = "home:"')
        assert load({}).prefix == "home:"
        (tmp_path / "ingest.toml").write_text('prefix = "here:"')
        assert load({}).prefix == "here:"

    def test_defaults_hold(self, config: Load) -> None:
        found = config()
        assert found.redis_url == "redis://127.0.0.1:6379/0"
        assert found.concurrency >= 5 and found.store.root.is_absolute()


#: toml, environment, what the message must name beside the place
WRONG: list[tuple[str, dict[str, str], str]] = [
    ("colour = 1", {}, "colour"),
    ("concurrency = 1", {}, "concurrency"),
    ("concurrency = 2.5", {}, "concurrency"),
    ("concurrency = true", {}, "concurrency"),
    ("concurrency = [4]", {}, "concurrency"),
    ("", {"INGEST_CONCURRENCY": "many"}, "INGEST_CONCURRENCY"),
    ("keep_s = 0", {}, "keep_s"),
    ('keep_s = "nan"', {}, "keep_s"),
    ("keep_s = inf", {}, "keep_s"),
    ("", {"INGEST_KEEP_S": "-3"}, "INGEST_KEEP_S"),
    ("node = 5", {}, "node"),
    ('node = "a b"', {}, "node"),
    ("", {"INGEST_NODE": ""}, "INGEST_NODE"),
    ("", {"INGEST_NODE": "x" * 64}, "INGEST_NODE"),
    ("prefix = []", {}, "prefix"),
    ('log_format = "xml"', {}, "log_format"),
    ("redis_url = 5", {}, "redis_url"),
    ('redis_url = "http://host"', {}, "redis_url"),
    ("", {"INGEST_REDIS_URL": "host:6379"}, "INGEST_REDIS_URL"),
    ("", {"INGEST_LEDGER_URL": "redis://host:port"}, "INGEST_LEDGER_URL"),
    ('broker_url = "redis://host:0"', {}, "broker_url"),
    ("limits = 1", {}, "[limits]"),
    ("[limits]\nsoft_s = 1", {}, "[limits]"),
    ('[limits]\nsoft_s = "900"', {}, "soft_s"),
    ("[limits]\nsofter_s = 1", {}, "softer_s"),
    ("[limits]\nconnect_s = true", {}, "connect_s"),
    ("[retry]\nattempts = 0", {}, "attempts"),
    ("[retry]\nattempts = 1.5", {}, "attempts"),
    ("[http]\nparallel = 0", {}, "parallel"),
    ("[http]\nuser_agent = 3", {}, "user_agent"),
    ("[store]\nfsync = 1", {}, "fsync"),
    ("[store]\nroot = 3", {}, "root"),
    ("[store]\nfresh_s = -1", {}, "fresh_s"),
    ("[egress]\nallow = [1]", {}, "allow"),
    ('[egress]\nallow = "host"', {}, "allow"),
    ("[egress]\nstrict = 0", {}, "strict"),
    ("files = 1", {}, "[files]"),
    ('[files]\nroots = "/data"', {}, "roots"),
    ('[files]\nroot = ["/data"]', {}, "root"),
    ("connections = 1", {}, "[connections]"),
    ("[connections]\nlake = 1", {}, "[connections.lake]"),
    ("[connections.lake]\nmatch = 1", {}, "[connections.lake]"),
    ('[connections.lake]\npassword = {env = "NOT_SET"}', {}, "NOT_SET"),
    ("[connections.lake]\npassword = {env = 5}", {}, "env"),
    ('[connections.lake]\npassword = {file = "/does/not/exist"}', {}, "/does/not/exist"),
    ("[connections.lake]\npassword = {file = 5}", {}, "file"),
    ("a = \nb = 1", {}, "line 1"),
]


class TestRefused:
    @pytest.mark.parametrize(("toml", "env", "named"), WRONG, ids=lambda value: str(value)[:40] if value else "-")
    def test_names_the_key_and_where_it_stands(
        self, config: Load, tmp_path: Path, toml: str, env: dict[str, str], named: str
    ) -> None:
        with pytest.raises(ConfigError) as raised:
            config(toml, **env)
        message = str(raised.value)
        assert named in message
        assert (next(iter(env)) if env else str(tmp_path / "test.toml")) in message

    def test_a_file_that_is_not_there(self, config: Load, tmp_path: Path) -> None:
        for path in (tmp_path / "none.toml", tmp_path):
            with pytest.raises(ConfigError, match="INGEST_CONFIG"):
                load({"INGEST_CONFIG": str(path)})

    def test_a_file_that_is_not_text(self, config: Load, tmp_path: Path) -> None:
        (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ConfigError, match=r"binary\.toml"):
            load({"INGEST_CONFIG": str(tmp_path / "binary.toml")})


class TestSecrets:
    TOML = """
        redis_url = "redis://user:hunter2@host:6379/0"
        [connections.lake]
        url = "postgresql://me:hunter2@db/x"
        [connections.lake.options]
        token = {env = "TOKEN"}
        key = {file = "KEY"}
    """

    def test_come_from_where_they_are_kept(self, config: Load, tmp_path: Path) -> None:
        (tmp_path / "key").write_text(" from-file \n")
        found = config(self.TOML.replace("KEY", str(tmp_path / "key")), TOKEN="from-env")
        assert found.connections["lake"].get("options") == {"token": "from-env", "key": "from-file"}
        assert found.connections["lake"].get("absent", 3) == 3

    def test_are_in_no_repr(self, config: Load, tmp_path: Path) -> None:
        (tmp_path / "key").write_text("hunter2")
        found = config(self.TOML.replace("KEY", str(tmp_path / "key")), TOKEN="hunter2")
        assert found.connections["lake"].get("url") == "postgresql://me:hunter2@db/x"
        for shown in (repr(found), str(found), repr(found.connections), repr(found.connections["lake"])):
            assert "hunter2" not in shown
        assert "lake" in repr(found)

    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            ("redis://host:6379/0", "redis://host:6379/0"),
            ("redis://user:pw@host/0", "redis://user@host/0"),
            ("redis://:pw@host:1/2", "redis://host:1/2"),
            ("redis://host/0?password=pw", "redis://host/0"),
            ("redis://:p/w@host:1/2", "redis://host:1/2"),
            ("redis://:p@w#?@host:1/2", "redis://host:1/2"),
            ("unix:///tmp/redis.sock?password=pw", "unix:///tmp/redis.sock"),
            ("pw", "(not a URL)"),
        ],
    )
    def test_a_url_without_its_password(self, url: str, shown: str) -> None:
        assert redact(url) == shown

    @given(
        st.text(st.characters(exclude_categories=("Cs",)), min_size=3, max_size=10).map(lambda text: f"SECRET{text}")
    )
    def test_no_password_is_shown_whatever_its_letters(self, password: str) -> None:
        assert "SECRET" not in redact(f"redis://user:{password}@host:6379/0")
        assert "SECRET" not in redact(f"redis://host:6379/0?password={password}")
        with pytest.raises(ConfigError) as raised:
            check_redis_url(f"http://:{password}@host:port/0", "INGEST_REDIS_URL")
        assert "SECRET" not in str(raised.value)


class TestConnectionFor:
    SETTINGS = Settings(
        connections={
            "all": Connection("all", {"match": "https://data.corp/"}),
            "part": Connection("part", {"match": "https://data.corp/part"}),
            "host": Connection("host", {"match": "s3://bucket"}),
            "none": Connection("none", {}),
        }
    )

    @pytest.mark.parametrize(
        ("uri", "name"),
        [
            ("https://data.corp/a", "all"),
            ("https://data.corp/part/a", "part"),
            ("https://data.corp/party", "all"),
            ("s3://bucket/a", "host"),
            ("s3://bucket", "host"),
            ("s3://bucket-of-others/a", None),
            ("https://data.corp.evil/", None),
            ("https://else/", None),
        ],
    )
    def test_the_longest_match_wins_and_ends_where_a_name_ends(self, uri: str, name: str | None) -> None:
        found = self.SETTINGS.connection_for(uri, None)
        assert (found.name if found else None) == name

    def test_a_name_is_taken_at_its_word(self) -> None:
        found = self.SETTINGS.connection_for("https://data.corp/a", "none")
        assert found is not None and found.name == "none"
        with pytest.raises(KeyError):
            self.SETTINGS.connection_for("https://data.corp/a", "lake")


class TestRankAndWorld:
    def test_as_torchrun_sets_them(self) -> None:
        assert rank_and_world({}) == (0, 1)
        assert rank_and_world({"RANK": "3", "WORLD_SIZE": "4"}) == (3, 4)

    @pytest.mark.parametrize(
        "env", [{"RANK": "1"}, {"RANK": "x", "WORLD_SIZE": "2"}, {"RANK": "-1", "WORLD_SIZE": "2"}, {"WORLD_SIZE": "0"}]
    )
    def test_what_cannot_be(self, env: dict[str, str]) -> None:
        with pytest.raises(ConfigError, match="WORLD_SIZE"):
            rank_and_world(env)
