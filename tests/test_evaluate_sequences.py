"""evaluate_sequences, evaluate_perplexity, evaluate_response_selection: against sacreBLEU and plain NumPy."""

import keras
import numpy as np
import pytest
from formulas import log_softmax
from sacrebleu.metrics import BLEU, CHRF

import keras_kd
from keras_kd.evaluation import Evaluation, sample_candidates
from keras_kd.evaluation.text_metrics import sentence_scores

REFERENCES = [
    "A dog runs along the beach.",
    "Two men are cooking in a small kitchen.",
    "The girl in the red dress reads a book to her brother.",
    "Ein Hund läuft am Strand entlang.",
    "Zwei Männer kochen in einer kleinen Küche.",
    "Das Mädchen im roten Kleid liest ihrem Bruder ein Buch vor.",
] * 4
LANGUAGES = (["en"] * 3 + ["de"] * 3) * 4
EXPECTED = {"bleu": BLEU(force=True), "chrf": CHRF(), "chrf++": CHRF(word_order=2)}


def with_gaps(share, seed):
    """The references without some of their words."""
    generator = np.random.default_rng(seed)
    return [" ".join(word for word in text.split() if generator.random() > share) for text in REFERENCES]


TEXTS = {"teacher": with_gaps(0.1, 1), "student": with_gaps(0.4, 2), "copy": with_gaps(0.1, 1)}
METRICS = ("bleu", "chrf", "chrf++", "distinct_1", "distinct_2")


@pytest.fixture(scope="module")
def evaluation():
    return keras_kd.evaluate_sequences(
        TEXTS, REFERENCES, languages=LANGUAGES, groups={"near": ["de", "en"]}, metrics=METRICS, bootstrap=50
    )


def of_language(texts, language):
    return [text for text, own in zip(texts, LANGUAGES, strict=True) if language in (own, None)]


@pytest.mark.parametrize("language", ["en", "de", None])
@pytest.mark.parametrize("metric", EXPECTED)
@pytest.mark.parametrize("name", TEXTS)
def test_the_scores_are_sacrebleus(evaluation, name, metric, language):
    texts, references = (of_language(one, language) for one in (TEXTS[name], REFERENCES))
    expected = EXPECTED[metric].corpus_score(texts, [references]).score
    found = evaluation.score(name, metric, language=language or "overall")
    assert found.value == pytest.approx(expected, rel=1e-12)
    assert found.examples == len(texts) and found.low <= found.value <= found.high
    assert evaluation.signatures[metric] == EXPECTED[metric].get_signature().format()


def test_the_bootstrap_is_sacrebleu_on_resampled_texts_the_same_for_all_systems():
    found = keras_kd.evaluate_sequences(TEXTS, REFERENCES, metrics="bleu", bootstrap=20, seed=7)
    drawn = np.random.default_rng(7).integers(len(REFERENCES), size=(20, len(REFERENCES)))

    def resampled(texts):
        corpora = [([texts[i] for i in rows], [[REFERENCES[i] for i in rows]]) for rows in drawn]
        return np.array([BLEU(force=True).corpus_score(*corpus).score for corpus in corpora])

    teacher, student = resampled(TEXTS["teacher"]), resampled(TEXTS["student"])
    np.testing.assert_allclose(found.score("student")[1:3], np.percentile(student, (2.5, 97.5)))
    np.testing.assert_allclose(
        found.difference("teacher", "student")[1:3], np.percentile(teacher - student, (2.5, 97.5))
    )
    assert found.difference("copy", "teacher")[:3] == (0.0, 0.0, 0.0)


def test_distinct_words_are_counted_over_all_texts_of_a_row_and_have_no_interval():
    found = keras_kd.evaluate_sequences(
        {"a": ["a b a b", "a b"], "b": ["a b c d", ""]},
        ["x", "y"],
        metrics=["distinct_1", "distinct_2"],
        languages=["p", "q"],
        bootstrap=10,
    )
    assert found.score("a", "distinct_1") == (2 / 6, None, None, 2)
    assert found.score("a", "distinct_2").value == 2 / 4  # ab, ba, ab; ab
    assert found.score("a", "distinct_2", language="q").value == 1.0
    assert found.score("b", "distinct_1").value == 1.0
    assert found.score("b", "distinct_1", language="q").value == 0.0
    assert found.difference("a", "b", "distinct_1").low is None


def test_several_references_and_a_tokenizer_per_language():
    texts, references = (
        ["the cat sat on the mat", "一只狗在海滩上跑"],
        [["the cat sat on a mat", "the cat is here"], ["一只狗在沙滩上跑"]],
    )
    found = keras_kd.evaluate_sequences(
        {"a": texts}, references, languages=["en", "zh"], tokenize={"en": "13a", "zh": "zh"}, bootstrap=0
    )
    english = BLEU(force=True).corpus_score(texts[:1], [[references[0][0]], [references[0][1]]])
    chinese = BLEU(tokenize="zh", force=True).corpus_score(texts[1:], [references[1]])
    assert found.score("a", "bleu", language="en").value == pytest.approx(english.score)
    assert found.score("a", "bleu", language="zh").value == pytest.approx(chinese.score)
    assert "tok:13a" in found.signatures["bleu"] and "tok:zh" in found.signatures["bleu"]
    assert found.score("a", "distinct_1", language="zh").value == 1.0  # each sign is a word


def test_functions_are_called_with_the_sources_and_timed():
    calls = []

    def shout(texts):
        calls.append(len(texts))
        return [text.upper() for text in texts]

    sources = [text.lower() for text in REFERENCES]
    found = keras_kd.evaluate_sequences({"f": shout, "texts": REFERENCES}, REFERENCES, sources=sources, bootstrap=0)
    assert found.score("f").value == BLEU(force=True).corpus_score([t.upper() for t in sources], [REFERENCES]).score
    assert found.models["f"].latency_ms > 0 and found.models["f"].words_per_second > 0
    assert found.models["texts"].latency_ms is None and found.models["texts"].size_bytes is None
    assert calls == [*[1] * 21, len(REFERENCES)]
    assert "words/s" in str(found)
    calls.clear()
    untimed = keras_kd.evaluate_sequences({"f": shout}, REFERENCES, sources=sources, bootstrap=0, latency=False)
    assert calls == [len(REFERENCES)] and untimed.models["f"].words_per_second is None


def test_it_is_printed_drawn_checked_and_stored_as_other_evaluations_are(evaluation, tmp_path):
    printed = str(evaluation)
    for part in ("BLEU", "chrF", "distinct-1", "24 examples", "mean of near", "tok:13a"):
        assert part in printed
    assert "size and latency" not in printed  # of texts, there is nothing to tell
    for metric in ("bleu", "distinct_1"):
        evaluation.plot(tmp_path / f"{metric}.png", metric=metric)
        assert (tmp_path / f"{metric}.png").stat().st_size > 10_000
    evaluation.to_json(tmp_path / "evaluation.json")
    assert Evaluation.from_json(tmp_path / "evaluation.json") == evaluation
    evaluation.to_html(tmp_path / "page.html")
    assert "tok:13a" in (tmp_path / "page.html").read_text(encoding="utf-8")
    (failure,) = evaluation.check(fail_under={"bleu": 60.0})
    assert failure.model == "student" and failure.value == evaluation.score("student").value


def test_a_tradeoff_is_drawn_of_systems_whose_size_is_not_known(tmp_path):
    systems = {"a": lambda texts: texts, "b": lambda texts: [text[:-1] for text in texts]}
    found = keras_kd.evaluate_sequences(systems, REFERENCES, sources=REFERENCES, bootstrap=0)
    found.plot_tradeoff(tmp_path / "tradeoff.png")
    assert (tmp_path / "tradeoff.png").stat().st_size > 10_000


def test_sentence_scores_are_sacrebleus():
    texts, references = TEXTS["student"][:4], REFERENCES[:4]
    for name, metric in {"chrf": CHRF(), "bleu": BLEU(effective_order=True)}.items():
        expected = [
            metric.sentence_score(*pair).score for pair in zip(texts, [[one] for one in references], strict=True)
        ]
        np.testing.assert_allclose(sentence_scores(texts, references, name), expected)


def test_bad_input_is_named():
    def refused(error, message, systems=TEXTS, references=REFERENCES, **options):
        with pytest.raises(error, match=message):
            keras_kd.evaluate_sequences(systems, references, bootstrap=0, **options)

    short = REFERENCES[:3]
    refused(TypeError, "systems must be a dict of name to outputs or function", systems=[short])
    refused(ValueError, "systems must hold at least one system", systems={})
    refused(ValueError, r"systems\['student'\] must hold a text for each of the 3", {"student": REFERENCES}, short)
    refused(TypeError, r"systems\['a'\] must be a list of str, got bytes in row 1", {"a": ["x", b"y", "z"]}, short)
    refused(TypeError, r"systems\['a'\] must be a list of str, got str", {"a": "text"}, short)
    refused(ValueError, r"references\[1\] is empty", {"a": short}, ["x", " ", "y"])
    refused(ValueError, r"references\[2\] is empty", {"a": short}, ["x", "y", []])
    refused(TypeError, r"references\[1\] must be a str", {"a": short}, ["x", 3, "y"])
    refused(ValueError, "at least one text, got none", {"a": []}, [])
    refused(TypeError, "the single 'text'", references="text")
    refused(ValueError, "sources must be given where a system is a function", {"a": str})
    refused(ValueError, "sources must hold a text for each of the 24", sources=short)
    refused(ValueError, "metrics must be one of", metrics=["rouge"])
    refused(ValueError, "metrics must be different names", metrics=[])
    refused(ValueError, "tokenize must be one of", tokenize="klingon")
    refused(ValueError, "a tokenizer for each language, \\['de', 'en'\\]", languages=LANGUAGES, tokenize={"en": "13a"})
    refused(ValueError, "languages has 3 entries", languages=["a", "b", "c"])
    refused(ValueError, r"groups\['g'\] must list languages", languages=LANGUAGES, groups={"g": ["sw"]})
    refused(ValueError, "teacher must be one of the systems", teacher="nobody")


# Perplexity ---------------------------------------------------------------------------------------------------------


def language_model(seed, vocabulary=7):
    layers = [keras.layers.Embedding(vocabulary, 4), keras.layers.Dense(vocabulary)]
    model = keras.Sequential([keras.Input((5,)), *layers])
    generator = np.random.default_rng(seed)
    model.set_weights([generator.normal(size=weight.shape) for weight in model.weights])
    return model


IDS = np.random.default_rng(0).integers(1, 7, (20, 5))
IDS[3:9, 3:] = 0
MODELS = {"teacher": language_model(0), "student": language_model(1)}


def expected_perplexity(model, rows, counted):
    log_probs = log_softmax(model(IDS).numpy())
    nats = -np.take_along_axis(log_probs, IDS[..., None], axis=-1)[..., 0]
    return np.exp(nats[rows][counted[rows]].mean())


def test_perplexity_is_that_of_all_tokens_that_are_no_padding():
    languages = ["a"] * 8 + ["b"] * 12
    found = keras_kd.evaluate_perplexity(
        MODELS, IDS, IDS, languages=languages, batch_size=7, bootstrap=100, latency=False
    )
    for name, model in MODELS.items():
        for row, rows in {"overall": slice(None), "a": slice(0, 8), "b": slice(8, None)}.items():
            score = found.score(name, language=row)
            assert score.value == pytest.approx(expected_perplexity(model, rows, IDS > 0), rel=1e-5)
            assert score.low < score.value < score.high
    (failure,) = found.check(fail_over={"perplexity": 1.0})
    assert failure.model == "student"
    assert "perplexity" in str(found)


def test_perplexity_with_a_mask_and_of_a_model_that_gives_probabilities():
    softmax = keras.Sequential([MODELS["student"], keras.layers.Softmax()])
    mask = np.arange(5) < np.arange(1, 21)[:, None]
    found = keras_kd.evaluate_perplexity(
        {"a": MODELS["student"], "b": softmax}, IDS, IDS, mask=mask, bootstrap=0, latency=False
    )
    expected = expected_perplexity(MODELS["student"], slice(None), mask)
    assert found.score("a").value == pytest.approx(expected, rel=1e-5)
    assert found.score("b").value == pytest.approx(expected, rel=1e-4)
    assert [found.models[name].outputs for name in "ab"] == ["logits", "probabilities"]


def test_perplexity_refuses_bad_input_by_name():
    def refused(message, models=MODELS, targets=IDS, **options):
        with pytest.raises(ValueError, match=message):
            keras_kd.evaluate_perplexity(models, IDS, targets, bootstrap=0, latency=False, **options)

    refused(r"targets must be integers \(20, length\)", targets=IDS[:3])
    refused("targets must be integers", targets=IDS / 1.0)
    refused(r"must give logits \(20, 4, 'vocabulary'\)", targets=IDS[:, :4])
    refused("targets holds the id 7, but", targets=IDS + 1)
    refused(r"targets\[4\] holds no token that counts", targets=IDS * (np.arange(20) != 4)[:, None])
    refused("mask must be bool of the shape", mask=IDS)
    refused("token ids >= 0, got -1", targets=IDS - 1, padding_id=None)


# Response selection --------------------------------------------------------------------------------------------------


def test_the_rank_of_the_true_response_counts_ties_against_it():
    scores = {"a": [[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 1.0, 2.0], [1.0, 1.0, 0.0]], "flat": np.zeros((4, 3))}
    found = keras_kd.evaluate_response_selection(
        scores, ["?"] * 4, [["x", "y", "z"]] * 4, languages=["p", "p", "q", "q"], bootstrap=50
    )
    assert found.score("a", "recall_at_1").value == 1 / 4
    assert found.score("a", "mrr").value == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    assert found.score("a", "mrr", language="q").value == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert found.score("flat", "recall_at_1").value == 0.0
    assert found.score("flat", "mrr").value == pytest.approx(1 / 3)
    assert found.difference("a", "flat").low >= 0.0
    assert "R@1" in str(found)


def test_a_function_scores_contexts_and_sampled_candidates():
    responses = [f"answer {i % 30}" for i in range(60)]  # each twice
    languages = ["a"] * 30 + ["b"] * 30
    candidates = sample_candidates(responses, languages=languages, count=20, seed=3)
    for own, true in zip(candidates, responses, strict=True):
        assert own[0] == true and len(set(own)) == 20
    assert candidates == sample_candidates(responses, languages=languages, count=20, seed=3)
    found = keras_kd.evaluate_response_selection(
        {"knows": lambda contexts, candidates: np.equal(np.array(contexts)[:, None], candidates).astype(float)},
        responses,
        candidates,
        bootstrap=0,
    )
    assert found.score("knows", "recall_at_1").value == 1.0


def test_response_selection_refuses_bad_input_by_name():
    def refused(error, message, systems, contexts=("?", "?"), candidates=(("x", "y"), ("x", "z"))):
        with pytest.raises(error, match=message):
            keras_kd.evaluate_response_selection(systems, contexts, candidates, bootstrap=0)

    good = {"a": np.zeros((2, 2))}
    refused(ValueError, r"systems\['a'\] must give scores .*\(2, 2\), got float64 \(2, 3\)", {"a": np.zeros((2, 3))})
    refused(ValueError, "NaN or infinite", {"a": np.full((2, 2), np.nan)})
    refused(ValueError, "equally many responses", good, candidates=(("x", "y"), ("x",)))
    refused(ValueError, "an entry per dialogue, got 1 and 2", good, contexts=("?",))
    refused(TypeError, "contexts must be a list", good, contexts="??")
    with pytest.raises(ValueError, match="at least 20 different ones to choose candidates from, got 2"):
        sample_candidates(["x", "y", "x"])
    with pytest.raises(ValueError, match="in the language 'b'"):
        sample_candidates(["x", "y", "z"], languages=["a", "a", "b"], count=2)
