"""ConvSent (Mitchell et al. 2022, SERAC): the sentiment of replies about a topic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from instructedit.data.opinions import opinion_questions
from instructedit.data.rows import Row
from instructedit.data.schemas.schema import Schema
from instructedit.records import EditRecord, EditRequest, Probe, ProbeKind

#: Distances, in the file, to the topics of the two other-topic probes.
_SAME_LABEL_DISTANCE, _OPPOSITE_LABEL_DISTANCE = 1, 7
#: Distances, in the list of opinion questions, to the two paraphrases of a topic's question.
_REPHRASE_DISTANCES = (5, 11)


def _read(rows: Sequence[Row]) -> Iterator[EditRecord]:
    """Yield, for each topic, one record towards positive and one towards negative replies.

    The target is one of the topic's own replies, picked by the record's index so that it is the same in every run;
    the two other-topic probes are replies about the topics 1 and 7 places on.
    """
    replies = [{"positive": row.texts("pos"), "negative": row.texts("neg")} for row in rows]
    topics = [row.text("ent") for row in rows]
    questions = opinion_questions()
    for index, topic in enumerate(topics):
        for label, opposite in (("positive", "negative"), ("negative", "positive")):
            targets = tuple(reply.strip() for reply in replies[index][label])
            if not targets:
                continue
            probes = []
            for distance, other_label in ((_SAME_LABEL_DISTANCE, label), (_OPPOSITE_LABEL_DISTANCE, opposite)):
                other = (index + distance) % len(topics)
                if other != index and replies[other][other_label]:
                    probes.append(
                        Probe(
                            kind=ProbeKind.OTHER_TOPIC,
                            prompt=questions[(index + distance) % len(questions)].format(topic=topics[other]),
                            answers=(replies[other][other_label][0].strip(),),
                        )
                    )
            yield EditRecord(
                record_id=f"{index}-{label}",
                request=EditRequest(
                    prompt=questions[index % len(questions)].format(topic=topic),
                    target=targets[index % len(targets)],
                    subject=topic,
                    label=label,
                ),
                rephrases=tuple(
                    questions[(index + distance) % len(questions)].format(topic=topic)
                    for distance in _REPHRASE_DISTANCES
                ),
                probes=tuple(probes),
                same_label_replies=targets,
                other_label_replies=tuple(reply.strip() for reply in replies[index][opposite]),
            )


CONVSENT = Schema("convsent", (frozenset({"ent", "pos", "neg"}),), _read)
