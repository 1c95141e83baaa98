"""Names of people, found by the optional extra `names`."""

from functools import lru_cache

from somabrain_dagster.corpus.redaction import Namer


class NamesMissing(RuntimeError):
    """The extra that finds names is not installed; the message says how to install it."""


@lru_cache(1)
def namer() -> Namer:
    """Presidio's recogniser of English names, with the model of spaCy that is installed.

    Raises:
        NamesMissing: Presidio, or a model of spaCy, is not installed.
    """
    try:
        import spacy
        from presidio_analyzer import AnalyzerEngine
        from presidio_analyzer.nlp_engine import NlpEngineProvider
    except ImportError as error:
        raise NamesMissing(
            "names are redacted by an extra: pip install 'somabrain-dagster[names]' brings it and a model"
        ) from error
    models = sorted(name for name in spacy.util.get_installed_models() if name.startswith("en_"))
    if not models:
        raise NamesMissing(
            "names need a model of spaCy for English: pip install 'somabrain-dagster[names]' brings one"
        )
    engine = NlpEngineProvider(
        nlp_configuration={
            "nlp_engine_name": "spacy",
            "models": [{"lang_code": "en", "model_name": models[-1]}],
        }
    ).create_engine()
    analyzer = AnalyzerEngine(nlp_engine=engine, supported_languages=["en"])

    def spans(text: str) -> list[tuple[int, int]]:
        found = analyzer.analyze(text, language="en", entities=["PERSON"])
        apart: list[tuple[int, int]] = []
        for span in sorted(found, key=lambda one: (one.start, -one.end)):
            if not apart or span.start >= apart[-1][1]:
                apart.append((span.start, span.end))
        return apart

    return spans
