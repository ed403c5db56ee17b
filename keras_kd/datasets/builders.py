"""TensorFlow Datasets builders of multilingual text. They are registered when `keras_kd.datasets` is imported."""

import dataclasses
import hashlib
import http.client
import json
import pathlib
import urllib.request

import numpy as np
import tensorflow_datasets as tfds

from keras_kd._keras_private import manual_folder
from keras_kd.datasets.rows import File, broken, read_lines, read_table

_GITHUB = "https://raw.githubusercontent.com"
_TIMEOUT = 10  # seconds until the publisher counts as out of reach


@dataclasses.dataclass(eq=False, repr=False)
class _Selection(tfds.core.BuilderConfig):
    """Some of the languages, or a folder. The name follows from the choice, so each choice is prepared once."""

    source: pathlib.Path | None = None
    languages: tuple[str, ...] = ()


class TextBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """What the builders of this module share: text files by language and split, downloaded or read from a folder.

    Args:
        source: A folder to read instead of downloading: the folder of the data set, or one that holds it under its
            name. The languages found in it are read; each must have the same splits. It is read anew when a file in
            it has changed.
        languages: Some of `LANGUAGES`; None for all.
        **options: `data_dir` and `version`; see `tfds.builder`.

    Raises:
        FileNotFoundError: `source` holds no file of the data set, or lacks some.
        ValueError: An unknown language. In `download_and_prepare`: a broken row, named by file and line.
        ConnectionError: In `download_and_prepare`: the publisher is out of reach; names the folder to fill.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "The first release."}  # noqa: RUF012
    MAX_SIMULTANEOUS_DOWNLOADS = 8
    LANGUAGES = ()
    SPLITS = {}  # noqa: RUF012  # {split: the publisher's name of it}
    REPOSITORY = REVISION = FOLDER = ""  # on GitHub
    PARALLEL = False  # whether an example holds all languages, so that a folder must have them

    def __init__(self, *, source=None, languages=None, config=None, **options):
        if source is not None or languages is not None:
            if config is not None:
                raise ValueError(f"config cannot go with source or languages, got {config!r}.")
            config = self._selection(source, languages)
        super().__init__(config=config, **options)

    def paths(self, language, split):
        """The files of a language in one of the publisher's splits, relative to the folder of the data set."""
        raise NotImplementedError

    def examples(self, language, *files):
        """Yield `(key, example)` for each row of the files of one language and split."""
        raise NotImplementedError

    @property
    def languages(self):
        """The languages to read, chosen or all."""
        return self.builder_config.languages if self.builder_config else self.LANGUAGES

    def _selection(self, source, languages):
        if languages is not None:
            languages = self._known(languages)
        if source is None:
            name = f"languages_{_digest(languages)}"
            return _Selection(name, languages=languages, description=f"Languages: {', '.join(languages)}.")
        folder = pathlib.Path(source).expanduser().absolute()
        folder = folder / self.name if (folder / self.name).is_dir() else folder
        splits = self._local_files(folder, languages)
        contents = [
            f"{split} {language} {hashlib.sha256(pathlib.Path(file.path).read_bytes()).hexdigest()}"
            for split, by_language in splits.items()
            for language, files in by_language.items()
            for file in files
        ]
        name = f"local_{_digest(contents)}"
        languages = tuple(next(iter(splits.values())))
        return _Selection(name, source=folder, languages=languages, description=f"Read from {folder}.")

    def _known(self, languages):
        if isinstance(languages, str):
            raise TypeError(f"languages must be a list of str, got the str {languages!r}. Write [{languages!r}].")
        languages = list(languages)
        if not languages or not set(languages) <= set(self.LANGUAGES):
            raise ValueError(f"languages must be some of those of {self.name}, {self.LANGUAGES}, got {languages}.")
        return tuple(language for language in self.LANGUAGES if language in languages)

    def _split_generators(self, dl_manager):
        manual = pathlib.Path(manual_folder(dl_manager)) / self.name
        if self.builder_config and self.builder_config.source:
            files = self._local_files(self.builder_config.source, self.languages)
        elif manual.is_dir():
            files = self._local_files(manual, self.languages if self.builder_config or self.PARALLEL else None)
        else:
            files = self._downloaded_files(dl_manager, manual)
        return {split: self._generate_examples(by_language) for split, by_language in files.items()}

    def _generate_examples(self, files):
        for language, members in files.items():
            for key, example in self.examples(language, *members):
                yield f"{language}/{key}", example

    def _paths(self, languages, folder):
        """`{split: {language: paths}}`."""
        return {
            split: {language: [f"{folder}/{path}" for path in self.paths(language, name)] for language in languages}
            for split, name in self.SPLITS.items()
        }

    def _local_files(self, folder, languages=None):
        """`{split: {language: files}}` of a folder, without the splits that no language has."""
        paths = self._paths(languages or self.LANGUAGES, folder)
        missing = {path for split in paths.values() for path in _flat(split) if not pathlib.Path(path).is_file()}
        if languages is None:
            languages = [name for name in self.LANGUAGES if any(not missing.issuperset(paths[s][name]) for s in paths)]
        chosen = {split: {name: by_language[name] for name in languages} for split, by_language in paths.items()}
        chosen = {split: files for split, files in chosen.items() if not missing.issuperset(_flat(files))}
        if not chosen:
            raise FileNotFoundError(f"{folder} holds no file of {self.name}. {self.MANUAL_DOWNLOAD_INSTRUCTIONS}")
        lacking = [path for files in chosen.values() for path in _flat(files) if path in missing]
        if lacking:
            raise FileNotFoundError(f"{self.name} lacks {len(lacking)} file(s) in {folder}, the first is {lacking[0]}.")
        return _as_files(chosen, chosen)

    def _downloaded_files(self, dl_manager, manual):
        """`{split: {language: files}}`, downloaded; without a network, an error at once: TFDS tries for minutes."""
        urls = self._paths(self.languages, f"{_GITHUB}/{self.REPOSITORY}/{self.REVISION}/{self.FOLDER}")
        first = _flat(next(iter(urls.values())))[0]
        way_out = (
            f"To do without a download, fill {manual}: {self.MANUAL_DOWNLOAD_INSTRUCTIONS} Or pass another "
            f'folder: tfds.load("{self.name}", builder_kwargs={{"source": folder}}).'
        )
        try:
            urllib.request.urlopen(urllib.request.Request(first, method="HEAD"), timeout=_TIMEOUT).close()
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionError(f"{self.name} cannot be downloaded from {first}: {error}. {way_out}") from error
        try:
            return _as_files(dl_manager.download(urls), urls)
        except Exception as error:
            error.add_note(way_out)
            raise


def _flat(by_language):
    return [member for members in by_language.values() for member in members]


def _as_files(paths, names):
    """`File`s of paths and of their names, which have one structure: `{split: {language: list}}`."""
    return {
        split: {
            language: [File(path, name) for path, name in zip(paths[split][language], members, strict=True)]
            for language, members in by_language.items()
        }
        for split, by_language in names.items()
    }


def _digest(parts):
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _are_texts(persona, *turns):
    if not all(isinstance(turn, list) and len(turn) == 2 for turn in turns):
        return False
    texts = [*persona, *(text for turn in turns for text in turn)]
    return bool(persona and turns) and all(isinstance(text, str) and text.strip() for text in texts)


def _checked_text(file, line, text):
    if not text.strip():
        raise broken(file, line, "the text is empty.")
    return text


_SIB200_LANGUAGES = """
ace_Arab ace_Latn acm_Arab acq_Arab aeb_Arab afr_Latn ajp_Arab aka_Latn als_Latn amh_Ethi apc_Arab arb_Arab
arb_Latn ars_Arab ary_Arab arz_Arab asm_Beng ast_Latn awa_Deva ayr_Latn azb_Arab azj_Latn bak_Cyrl bam_Latn
ban_Latn bel_Cyrl bem_Latn ben_Beng bho_Deva bjn_Arab bjn_Latn bod_Tibt bos_Latn bug_Latn bul_Cyrl cat_Latn
ceb_Latn ces_Latn cjk_Latn ckb_Arab crh_Latn cym_Latn dan_Latn deu_Latn dik_Latn dyu_Latn dzo_Tibt ell_Grek
eng_Latn epo_Latn est_Latn eus_Latn ewe_Latn fao_Latn fij_Latn fin_Latn fon_Latn fra_Latn fur_Latn fuv_Latn
gaz_Latn gla_Latn gle_Latn glg_Latn grn_Latn guj_Gujr hat_Latn hau_Latn heb_Hebr hin_Deva hne_Deva hrv_Latn
hun_Latn hye_Armn ibo_Latn ilo_Latn ind_Latn isl_Latn ita_Latn jav_Latn jpn_Jpan kab_Latn kac_Latn kam_Latn
kan_Knda kas_Arab kas_Deva kat_Geor kaz_Cyrl kbp_Latn kea_Latn khk_Cyrl khm_Khmr kik_Latn kin_Latn kir_Cyrl
kmb_Latn kmr_Latn knc_Arab knc_Latn kon_Latn kor_Hang lao_Laoo lij_Latn lim_Latn lin_Latn lit_Latn lmo_Latn
ltg_Latn ltz_Latn lua_Latn lug_Latn luo_Latn lus_Latn lvs_Latn mag_Deva mai_Deva mal_Mlym mar_Deva min_Arab
min_Latn mkd_Cyrl mlt_Latn mni_Beng mos_Latn mri_Latn mya_Mymr nld_Latn nno_Latn nob_Latn npi_Deva nqo_Nkoo
nso_Latn nus_Latn nya_Latn oci_Latn ory_Orya pag_Latn pan_Guru pap_Latn pbt_Arab pes_Arab plt_Latn pol_Latn
por_Latn prs_Arab quy_Latn ron_Latn run_Latn rus_Cyrl sag_Latn san_Deva sat_Olck scn_Latn shn_Mymr sin_Sinh
slk_Latn slv_Latn smo_Latn sna_Latn snd_Arab som_Latn sot_Latn spa_Latn srd_Latn srp_Cyrl ssw_Latn sun_Latn
swe_Latn swh_Latn szl_Latn tam_Taml taq_Latn taq_Tfng tat_Cyrl tel_Telu tgk_Cyrl tgl_Latn tha_Thai tir_Ethi
tpi_Latn tsn_Latn tso_Latn tuk_Latn tum_Latn tur_Latn twi_Latn tzm_Tfng uig_Arab ukr_Cyrl umb_Latn urd_Arab
uzn_Latn vec_Latn vie_Latn war_Latn wol_Latn xho_Latn ydd_Hebr yor_Latn yue_Hant zho_Hans zho_Hant zsm_Latn
zul_Latn
"""


class Sib200(TextBuilder):
    """`sib200`: the topic of a sentence, in 205 languages.

    Each example has `text`, `label` (7 topics), `language` ("eng_Latn"), and `index_id`: sentences with the same
    index are translations of each other. Splits: train, validation and test, 701, 99 and 204 sentences per language.
    A text is what the file holds: where it has quotation marks, the publisher wrote it as CSV does, in quotes.

    License: Apache-2.0; the sentences are from FLORES-200, CC BY-SA 4.0.
    Reference: Adelani et al., "SIB-200", 2023 (https://arxiv.org/abs/2309.07445).
    Arguments: as `keras_kd.datasets.TextBuilder`.
    """

    SPLITS = {"train": "train", "validation": "dev", "test": "test"}  # noqa: RUF012
    REPOSITORY, FOLDER = "dadelani/sib-200", "data/annotated"
    REVISION = "e7a172159963fd28c65f1ea53a0cea931bd08719"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "manual_dir/sib200 is laid out as data/annotated of https://github.com/dadelani/sib-200: eng_Latn/train.tsv, "
        "eng_Latn/dev.tsv, eng_Latn/test.tsv and so on."
    )
    TOPICS = ("science/technology", "travel", "politics", "sports", "health", "entertainment", "geography")
    LANGUAGES = tuple(_SIB200_LANGUAGES.split())

    def paths(self, language, split):
        return [f"{language}/{split}.tsv"]

    def examples(self, language, file):
        table, seen = read_table(file), set()
        if table.columns != ("index_id", "category", "text"):
            raise broken(file, 1, f"the columns must be index_id, category and text, got {list(table.columns)}.")
        for line, row in table.rows:
            index, topic = row["index_id"], row["category"]
            if not index.isdecimal() or index in seen:
                raise broken(file, line, f"index_id must be a number that no other row has, got {index!r}.")
            if topic not in self.TOPICS:
                raise broken(file, line, f"category must be one of {self.TOPICS}, got {topic!r}.")
            seen.add(index)
            text = _checked_text(file, line, row["text"])
            yield index, {"text": text, "label": topic, "language": language, "index_id": int(index)}

    def _info(self):
        features = {
            "text": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=self.TOPICS),
            "language": tfds.features.Text(),
            "index_id": tfds.features.Scalar(np.int64),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Topic classification of the same sentences in 205 languages and dialects.",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("text", "label"),
            homepage="https://github.com/dadelani/sib-200",
            license="Apache-2.0; sentences of FLORES-200, CC BY-SA 4.0",
            citation="""@misc{adelani2023sib200,
                title={SIB-200: A Simple, Inclusive, and Big Evaluation Dataset for Topic Classification in 200+
                    Languages and Dialects},
                author={David Ifeoluwa Adelani and Hannah Liu and Xiaoyu Shen and Nikita Vassilyev and Jesujoba O.
                    Alabi and Yanke Mao and Haonan Gao and Annie En-Shiun Lee},
                year={2023}, eprint={2309.07445}, archivePrefix={arXiv}, primaryClass={cs.CL}
            }""",
        )


class Umsab(TextBuilder):
    """`umsab`: the sentiment of a tweet, in 8 languages.

    Each example has `text`, `label` (negative, neutral, positive) and `language` ("arabic", ...). Splits: train,
    validation and test, 1,839, 324 and 870 tweets per language.

    License: the repository is open source; tweets for research, under Twitter's rules and the licenses of the eight
    data sets that it unifies.
    Reference: Barbieri et al., "XLM-T", 2022 (https://arxiv.org/abs/2104.12250).
    Arguments: as `keras_kd.datasets.TextBuilder`.
    """

    SPLITS = {"train": "train", "validation": "val", "test": "test"}  # noqa: RUF012
    REPOSITORY, REVISION, FOLDER = "cardiffnlp/xlm-t", "main", "data/sentiment"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "manual_dir/umsab is laid out as data/sentiment of https://github.com/cardiffnlp/xlm-t: "
        "english/train_text.txt, english/train_labels.txt and so on, with train, val and test."
    )
    LANGUAGES = ("arabic", "english", "french", "german", "hindi", "italian", "portuguese", "spanish")

    def paths(self, language, split):
        return [f"{language}/{split}_text.txt", f"{language}/{split}_labels.txt"]

    def examples(self, language, texts, labels):
        read_texts, read_labels = read_lines(texts), read_lines(labels)
        if len(read_texts) != len(read_labels):
            raise broken(labels, len(read_labels), f"{len(read_labels)} labels for {len(read_texts)} texts.")
        for line, (text, label) in enumerate(zip(read_texts, read_labels, strict=True), 1):
            if label not in ("0", "1", "2"):
                raise broken(labels, line, f"a label must be 0, 1 or 2, got {label!r}.")
            yield line, {"text": _checked_text(texts, line, text), "label": int(label), "language": language}

    def _info(self):
        features = {
            "text": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=("negative", "neutral", "positive")),
            "language": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Unified Multilingual Sentiment Analysis Benchmark: the sentiment of tweets in 8 languages.",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("text", "label"),
            homepage="https://github.com/cardiffnlp/xlm-t",
            license="Tweets for research, under the licenses of the data sets that it unifies",
            citation="""@inproceedings{barbieri2022xlmt,
                title={{XLM-T}: Multilingual Language Models in {T}witter for Sentiment Analysis and Beyond},
                author={Barbieri, Francesco and Espinosa Anke, Luis and Camacho-Collados, Jose},
                booktitle={Proceedings of LREC}, year={2022}
            }""",
        )


class Multi30k(TextBuilder):
    """`multi30k`: descriptions of images, each in English, German, French and Czech.

    Each example has a text per language, `{"en": ..., "de": ..., "fr": ..., "cs": ...}` (`tfds.features.Translation`).
    Splits: train, validation and test (test_2016_flickr), 29,000, 1,014 and 1,000 examples.

    License: for research; the descriptions are of images of Flickr30k.
    Reference: Elliott et al., "Multi30K", 2016 (https://arxiv.org/abs/1605.00459).
    Arguments: as `keras_kd.datasets.TextBuilder`.
    """

    SPLITS = {"train": "train", "validation": "val", "test": "test_2016_flickr"}  # noqa: RUF012
    REPOSITORY, REVISION, FOLDER = "multi30k/dataset", "master", "data/task1/raw"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "manual_dir/multi30k is laid out as data/task1/raw of https://github.com/multi30k/dataset: train.en.gz, "
        "val.en.gz, test_2016_flickr.en.gz and so on, with en, de, fr and cs."
    )
    LANGUAGES = ("en", "de", "fr", "cs")
    PARALLEL = True

    def paths(self, language, split):
        return [f"{split}.{language}.gz"]

    def _generate_examples(self, files):
        files = {language: file for language, (file,) in files.items()}
        lines = {language: read_lines(file) for language, file in files.items()}
        first = next(iter(files))
        for language, file in files.items():
            if len(lines[language]) != len(lines[first]):
                ends = f"{len(lines[language])} lines, but {files[first].name} has {len(lines[first])}."
                raise broken(file, len(lines[language]), ends)
        for line, texts in enumerate(zip(*lines.values(), strict=True), 1):
            yield line, {name: _checked_text(files[name], line, text) for name, text in zip(files, texts, strict=True)}

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description="Descriptions of 31,014 images, translated from English by professionals.",
            features=tfds.features.Translation(languages=self.languages),
            supervised_keys=self.languages[:2] if len(self.languages) > 1 else None,
            homepage="https://github.com/multi30k/dataset",
            license="For research; see the licenses of Multi30k and Flickr30k",
            citation="""@inproceedings{elliott2016multi30k,
                title={Multi30{K}: Multilingual {E}nglish-{G}erman Image Descriptions},
                author={Elliott, Desmond and Frank, Stella and Sima'an, Khalil and Specia, Lucia},
                booktitle={Proceedings of the 5th Workshop on Vision and Language}, year={2016}, pages={70--74}
            }""",
        )


class Xpersona(TextBuilder):
    """`xpersona`: dialogues of two people, one of whom has a persona, in 7 languages.

    Each example has `persona` (sentences), `turns` (`user` and `system`, sequences of one length), `language` ("en",
    "fr", "id", "it", "ja", "ko", "zh") and `number`, its place in the file, from 1. In English the first user is
    "__SILENCE__": the system begins. The other languages are translations, in the same order, with gaps. Splits:
    validation and test, checked by people; a local folder may lack test.

    License: MIT.
    Reference: Lin et al., "XPersona", 2020 (https://arxiv.org/abs/2003.07568).
    Arguments: as `keras_kd.datasets.TextBuilder`.
    """

    SPLITS = {"validation": "valid", "test": "test"}  # noqa: RUF012
    REPOSITORY, FOLDER = "HLTCHKUST/Xpersona", "dataset"
    REVISION = "1ef60449ef4d8a43c904a95ccf40814af8fed257"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "manual_dir/xpersona is laid out as dataset of https://github.com/HLTCHKUST/Xpersona: En_persona_valid.json, "
        "Fr_persona_split_valid_human_annotated.json and so on."
    )
    LANGUAGES = ("en", "fr", "id", "it", "ja", "ko", "zh")

    def paths(self, language, split):
        if language == "en":
            return [f"En_persona_{split}.json"]
        prefix = "Jp" if language == "ja" else language.capitalize()
        return [f"{prefix}_persona_split_{split}_human_annotated.json"]

    def examples(self, language, file):
        lines = read_lines(file)
        try:
            dialogues = json.loads("\n".join(lines))
        except json.JSONDecodeError as error:
            raise broken(file, error.lineno, f"no JSON: {error.msg}, column {error.colno}.") from error
        if not isinstance(dialogues, list):
            raise broken(file, 1, "expected a list of dialogues.")
        for number, dialogue in enumerate(dialogues, 1):
            match dialogue:
                case {"persona": [*persona], "dialogue": [*turns]} if _are_texts(persona, *turns):
                    users, systems = zip(*turns, strict=True)
                    turns = {"user": users, "system": systems}
                    yield number, {"persona": persona, "turns": turns, "language": language, "number": number}
                case _:
                    shape = '{"persona": [text, ...], "dialogue": [[user, system], ...]}'
                    raise broken(file, f"dialogue {number}", f"expected {shape}, without empty texts.")

    def _info(self):
        turn = {"user": tfds.features.Text(), "system": tfds.features.Text()}
        features = {
            "persona": tfds.features.Sequence(tfds.features.Text()),
            "turns": tfds.features.Sequence(turn),
            "language": tfds.features.Text(),
            "number": tfds.features.Scalar(np.int64),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Dialogues with a persona in 7 languages: Persona-Chat, translated and corrected by people.",
            features=tfds.features.FeaturesDict(features),
            homepage="https://github.com/HLTCHKUST/Xpersona",
            license="MIT",
            citation="""@article{lin2020xpersona,
                title={XPersona: Evaluating Multilingual Personalized Chatbot},
                author={Lin, Zhaojiang and Liu, Zihan and Winata, Genta Indra and Cahyawijaya, Samuel and Madotto,
                    Andrea and Bang, Yejin and Ishii, Etsuko and Fung, Pascale},
                journal={arXiv preprint arXiv:2003.07568}, year={2020}
            }""",
        )
