PYTHON ?= python3
BIN := .venv/bin
ROUNDS ?= 50

.DEFAULT_GOAL := help
# What has a description is a name, and no file.
.PHONY: $(shell sed -n 's/^\([a-z-]*\):.*\#\#.*/\1/p' $(MAKEFILE_LIST))

help: ## Say what there is.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

.venv/.installed: requirements.lock pyproject.toml scripts/bootstrap.py
	@$(PYTHON) scripts/bootstrap.py .venv
	@touch $@

install: .venv/.installed ## Make the virtual environment from the lock file.

demo: install ## Import 100 people's real conversations, materialise everything, print a report.
	@$(BIN)/somabrain demo

learn: install ## The learning chain on real conversations, from an empty brain to a promotion or a no; a quarter of an hour.
	@$(BIN)/somabrain learn

up: export SOMABRAIN_SENSOR_INTERVAL_SECONDS ?= 5
up: export SOMABRAIN_AUTOPILOT ?= 1
up: install ## Open Dagster's UI with its daemon, and the service; Ctrl-C stops what it started.
	@$(BIN)/somabrain ui

down: install ## Stop the embedded servers.
	@$(BIN)/somabrain down

status: install ## Say which servers run.
	@$(BIN)/somabrain status || :

test: install ## Run the tests, on real servers, in two processes; not those that are marked slow.
	@$(BIN)/pytest -n 2 --dist loadfile -m "not slow"

test-slow: install ## The long proofs among the tests, but for Kafka's and the validation's: the service fuzzed, backups restored, pages run, an incident; twenty minutes.
	@$(BIN)/pytest -m slow --ignore tests/test_kafka.py --ignore tests/test_kafka_failover.py --ignore tests/test_validation.py

test-learning: install ## The tests of the paths by which weights change, the long ones too; some minutes.
	@$(BIN)/pytest -n 2 --dist loadfile -m learning -vv

lint: install ## Check style and format.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: install ## Check types, strictly.
	@$(BIN)/mypy

format: install ## Format the code.
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

screenshots: export SOMABRAIN_HOME ?= .somabrain/learn
screenshots: install ## Take the pictures of the docs, of what `make learn` left; needs Chromium.
	@$(BIN)/python scripts/screenshots.py

scales: install ## Measure the scales that ship on recorded conversations.
	@$(BIN)/python -m benchmarks.scales

evidence: install ## Does learning recall better? On held-out questions of real conversations; six minutes.
	@$(BIN)/python scripts/prove_enhancement.py

tuning: install ## What each weight does to real recalls, written into docs/LEARNING_TUNING.md; a minute.
	@$(BIN)/python scripts/tuning.py --write

calibration: install ## How often each statistical decision errs, on generated truth.
	@$(BIN)/python -m benchmarks.calibration

bench: install ## Everything beside its floor and its peers, one table of ratios in the end; a quarter of an hour.
	@$(BIN)/python -m benchmarks.bench

bench-replay: install ## A million changes of weights read and folded, beside reading alone and other ways.
	@$(BIN)/python -m benchmarks.replay

bench-conversing: install ## Memory that grows message by message, beside mem0 and bare pgvector.
	@$(BIN)/python -m benchmarks.conversing

figures: install ## Write the tables of docs/BENCHMARKS.md from docs/figures.
	@$(BIN)/python -m scripts.figures write

bench-serving: install ## The service against its floor and its peers, from a second process.
	@$(BIN)/python -m benchmarks.serving

bench-analysis: install ## How long experiments and the trends of a million events take to analyse, beside peers.
	@$(BIN)/python -m benchmarks.analysis

bench-recall: install ## Recall at 1,000 to 1,000,000 memories beside the bare pgvector query; embedding.
	@$(BIN)/python -m benchmarks.recall

bench-retention: install ## Feedback retrieval at a million events, and pruning them beside a service under load.
	@$(BIN)/python -m benchmarks.retention

bench-beside: install ## The service's latency alone, and beside runs of the learning chain.
	@$(BIN)/python -m benchmarks.beside

soak: install ## A thousand turns of two agents through the service: weights, working memory, its process; MINUTES=60 for more.
	@$(BIN)/python -m benchmarks.learning_soak $(if $(MINUTES),--minutes $(MINUTES)) $(if $(EVENTS),--events $(EVENTS))

unit-costs: install ## What one event, recall, fit and row cost, of which docs/SCALING.md computes machines; four minutes.
	@$(BIN)/python -m benchmarks.unit_costs

celery: install ## The asset graph on workers of Celery, of which one is killed: all made, and all the same? Ten minutes.
	@$(BIN)/python -m scripts.beyond_one_machine

chaos-serving: install ## Kill the service, Postgres and Valkey under load; count what was acknowledged.
	@$(BIN)/python scripts/chaos_serving.py

chaos: install ## Kill Postgres, Valkey and the service in random order under load, fifty rounds; seven minutes.
	@$(BIN)/python scripts/chaos.py --rounds $(ROUNDS)

kafka: install ## Get Apache Kafka and start three nodes of it on this machine; needs Java 17 and Maven.
	@$(BIN)/somabrain kafka up

kafka-down: install ## Stop them; what they hold stays.
	@$(BIN)/somabrain kafka down

kafka-failover: install ## Kill Kafka's nodes while feedback lands: is anything lost? Two minutes; writes a report.
	@SOMABRAIN_REQUIRE_KAFKA=1 $(BIN)/pytest tests/test_kafka_failover.py tests/test_kafka.py

drill: install ## Back up under load, wipe, restore, verify; refuse what is damaged. A minute.
	@$(BIN)/python scripts/drill.py

validate: install ## A million events of 100 tenants through the public paths, all of it running; then every objective. EVENTS=…; resumes.
	@$(BIN)/python -m benchmarks.validate $(if $(EVENTS),--events $(EVENTS)) $(if $(FRESH),--fresh)

validate-killed: install ## Kill a small validation in its midst, and let it go on.
	@$(BIN)/pytest -m slow tests/test_validation.py

dashboards: install ## Write the dashboards of Grafana from scripts/dashboards.
	@$(BIN)/python -m scripts.dashboards

prometheus: install ## Prometheus beside the service of `make up`, with the alerts that ship; Ctrl-C stops it.
	@$(BIN)/python -m scripts.prometheus

observability: install ## Check every metric, rule and panel against a live stack with a real Prometheus; some minutes.
	@$(BIN)/python -m scripts.observability

false-alarms: install ## Count the alarms that a history of real ratings would have raised; a minute or two.
	@$(BIN)/python -m scripts.false_alarms

corpus: install ## Build, verify, rebuild and train on a corpus of real conversations; some minutes.
	@$(BIN)/python scripts/prove_corpus.py

bench-corpus: install ## Build a corpus of many megabytes, beside the plain loop over its lines.
	@$(BIN)/python -m benchmarks.corpus

incident: install ## Adversarial feedback until an alert fires; the runbook finds it and brings the tenant back; seven minutes.
	@$(BIN)/python scripts/incident.py

first-light: install ## Copy the working tree to an empty directory; there, demo twice and replay.
	@$(BIN)/python scripts/first_light.py
