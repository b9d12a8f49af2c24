"""How the bundled `tiny` model was made; part of the repository, not of the installed package. Read and run in order:

    sources     which packages, under which licences, and how they are fetched
    extract     markup to paragraphs
    clean       which paragraphs are kept; duplicates; training, validation, calibration, evaluation
    gather      all of that: text and manifest
    encode      the tokenizer, and token ids
    train       the model
    measure     what the card states
    card        the model folder: configs, notices, curve, README (its words are in card_text)

The exact commands are at the end of the model card, `refquant/models/tiny/README.md`.
"""
