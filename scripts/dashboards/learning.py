"""The dashboard of what is learned."""

from scripts.dashboards.views import TENANT, Board, Query, View, age, each, total

LEARNING = Board(
    uid="somabrain-learning",
    title="SomaBrain: learning",
    about="What is learned of each tenant, what moves it, and what comes of it for everybody.",
    rows={
        "Weights of recall": [
            View(
                title=f"{symbol}, {what}",
                why=why,
                queries=[Query(each(f"somabrain_retrieval_{name}"), "{{tenant_id}}")],
                span=6,
            )
            for symbol, name, what, why in (
                ("α", "alpha", "what meaning counts", "Starts at 1, from 0.8 to 3."),
                ("β", "beta", "what links count", "Starts at 0.2, from 0 to 1."),
                (
                    "γ",
                    "gamma",
                    "what recency counts",
                    "Starts at 0.1, from 0 to 1; many tenants rightly sit at a bound.",
                ),
                (
                    "τ",
                    "tau",
                    "how far a recall strays",
                    "Starts at 0.7, from 0.4 to 1.2; it rises where the same memories come again and again.",
                ),
            )
        ]
        + [
            View(
                "Every feature's weight",
                "Of the tenants that are chosen: choose one, or few.",
                [
                    Query(
                        each("somabrain_retrieval_weight", "tenant_id, feature"), "{{tenant_id}} {{feature}}"
                    )
                ],
                span=12,
            ),
            View(
                "Weights at a bound",
                "Tenants of whom a weight is at its lower or upper bound: no harm by itself, an alarm with a "
                "reward that falls.",
                [
                    Query(
                        "sum by (weight) (abs(max by (tenant_id, weight) "
                        f"(somabrain_weight_at_bound{{{TENANT}}})))",
                        "{{weight}}",
                    )
                ],
                span=12,
            ),
        ],
        "Weights of utility, and how fast they are learned": [
            View(
                "λ, what a context's gain counts",
                "Starts at 1, from 0.1 to 5.",
                [Query(each("somabrain_utility_lambda"), "{{tenant_id}}")],
                span=6,
            ),
            View(
                "μ and ν, what length and memories cost",
                "Start at 0.1 and 0.05, from 0.01 to 5.",
                [
                    Query(each("somabrain_utility_mu"), "μ {{tenant_id}}"),
                    Query(each("somabrain_utility_nu"), "ν {{tenant_id}}"),
                ],
                span=6,
            ),
            View(
                "Learning rate",
                "Of a feedback that meets the levels of now; dopamine scales it where that is switched on.",
                [Query(each("somabrain_learning_rate"), "{{tenant_id}}")],
                span=6,
            ),
            View(
                "Changes of weights",
                "How many each tenant's log has: its version.",
                [Query(each("somabrain_weights_version"), "{{tenant_id}}")],
                span=6,
            ),
        ],
        "Reward and neuromodulators": [
            View(
                "Reward, its running mean",
                "V: each new reward counts a tenth.",
                [Query(each("somabrain_reward_mean"), "{{tenant_id}}")],
            ),
            View(
                "Reward, its spread and its last surprise",
                "The running standard deviation, and by how much the last reward was above the mean.",
                [
                    Query(f"sqrt({each('somabrain_reward_variance')})", "spread {{tenant_id}}"),
                    Query(each("somabrain_reward_prediction_error"), "surprise {{tenant_id}}"),
                ],
            ),
            View(
                "How far the reward falls",
                "By how many standard errors the last 20 rewards are below those before them. At 4 the guard "
                "rolls the tenant back. Nothing where there are too few.",
                [Query(each("somabrain_reward_fall_standard_errors"), "{{tenant_id}}")],
                unit="none",
                steps={None: "green", 3: "orange", 4: "red"},
            ),
            View(
                "Neuromodulators",
                "The mean of the tenants that are chosen. Dopamine scales learning, serotonin steadies τ; "
                "the other two act on recall where that is switched on.",
                [
                    Query(
                        f"avg by (kind) ({each('somabrain_neuromodulator_level', 'tenant_id, kind')})",
                        "{{kind}}",
                    )
                ],
                span=12,
            ),
            View(
                "Changes that answer no feedback",
                "By cause, as they have added up: diversity's steps of τ, rollbacks, promotions, resets.",
                [Query(total("somabrain_supervisor_adjustments_total", "cause", TENANT), "{{cause}}")],
                span=12,
            ),
        ],
        "What is recalled": [
            View(
                "Diversity and τ",
                "Of what was recalled last, the share that repeats nothing; τ steers it to 0.5.",
                [
                    Query(each("somabrain_diversity"), "diversity {{tenant_id}}"),
                    Query(each("somabrain_retrieval_tau"), "τ {{tenant_id}}"),
                ],
            ),
            View(
                "Working memory",
                "Memories that the sessions of a tenant have in mind.",
                [Query(each("somabrain_working_memory_items"), "{{tenant_id}}")],
            ),
            View(
                "Working memory, its growth a minute",
                "Over the last five minutes; it falls when sessions end.",
                [
                    Query(
                        f"60 * max by (tenant_id) (deriv(somabrain_working_memory_items{{{TENANT}}}[5m]))",
                        "{{tenant_id}}",
                    )
                ],
            ),
        ],
        "Experiments, canaries, promotions": [
            View(
                "Experiments",
                "Each arm of the newest twenty: sessions, mean reward; once analysed Cohen's d, p, and "
                "whether every gate let it pass.",
                [
                    Query(each(f"somabrain_experiment_{what}", "experiment_id, arm", ""))
                    for what in ("sessions", "reward_mean", "effect", "p_value", "promotable")
                ],
                kind="table",
                span=16,
            ),
            View(
                "Where each experiment is",
                "Its status, and how many sessions each of its arms takes.",
                [
                    Query(each("somabrain_experiment_status", "experiment_id, status", "")),
                    Query(each("somabrain_experiment_size", "experiment_id", "")),
                ],
                kind="table",
            ),
            View(
                "Experiments by status",
                "At most one runs at a time.",
                [Query(each("somabrain_experiments", "status", ""), "{{status}}")],
                kind="bars",
                span=6,
            ),
            View(
                "Canaries, and looks at them",
                "By what became of them, and by what each look decided.",
                [
                    Query(each("somabrain_canaries", "status", ""), "{{status}}"),
                    Query(total("somabrain_canary_looks_total", "action"), "looks: {{action}}"),
                ],
                kind="bars",
                span=6,
            ),
            View(
                "Proposals, fits and trends",
                "Proposals of weights for all, fits of tenants' own, tenants by the trend of their utility.",
                [
                    Query(total("somabrain_proposals_total", "outcome"), "proposals {{outcome}}"),
                    Query(total("somabrain_tenant_fits_total", "outcome"), "fits {{outcome}}"),
                    Query(each("somabrain_trends", "direction", ""), "trend: {{direction}}"),
                ],
                kind="bars",
                span=6,
            ),
            View(
                "Promotions",
                "The version that is promoted to everybody, and how often one was promoted or undone.",
                [
                    Query("max(somabrain_promoted_version)", "version"),
                    Query(total("somabrain_promotions_total", "kind"), "{{kind}}"),
                ],
                kind="numbers",
                span=3,
            ),
            View(
                "Since the last promotion",
                "Or its undoing; 0 where there was none.",
                [Query(f"({age('somabrain_promotion_last_timestamp_seconds')}) or vector(0)", "ago")],
                unit="s",
                kind="numbers",
                span=3,
            ),
        ],
        "Training corpora": [
            View(
                "Examples and tokens",
                "That the corpora hold of the tenants that are chosen.",
                [
                    Query(
                        total("somabrain_corpus_examples_total", "tenant_id", TENANT),
                        "examples {{tenant_id}}",
                    ),
                    Query(
                        total("somabrain_corpus_tokens_total", "tenant_id", TENANT), "tokens {{tenant_id}}"
                    ),
                ],
            ),
            View(
                "Builds",
                "To which a tenant gave.",
                [Query(total("somabrain_corpus_exports_total", "tenant_id", TENANT), "{{tenant_id}}")],
            ),
            View(
                "Left out",
                "Examples, by the stage that rejected them.",
                [Query(total("somabrain_corpus_rejects_total", "stage", TENANT), "{{stage}}")],
            ),
        ],
    },
)
