"""KDTrainer after the training: `test` and `predict`."""

import pytest
import torch
from trainer_kit import NormNet, distilled, loaders, make, trained

from distillation import KDTrainer
from distillation.errors import ConfigError, ShapeError

# -- test and predict


def test_test_measures_the_student_with_or_without_ema(tmp_path):
    _, valid = loaders()
    trainer = distilled(
        tmp_path,
        ema=True,
        ema_params={"decay": 1.0, "decay_type": "constant"},
        max_epochs=3,
        valid_metrics_list=["Accuracy"],
    )
    results = trainer.test(test_loader=valid)
    assert results["Accuracy"] == trainer.results["accuracy.valid"]
    assert results["KDLogitsLoss/Loss"] == trainer.results["loss.valid"]
    plain = trainer.test(test_loader=valid, use_ema_net=False, test_metrics_list=["Top5"])
    assert set(plain) >= {"Top5", "KDLogitsLoss/Loss"}
    assert plain["KDLogitsLoss/Loss"] < results["KDLogitsLoss/Loss"]


def test_test_takes_another_model_and_leaves_its_flags(tmp_path):
    _, valid = loaders()
    trainer = KDTrainer("kd", tmp_path)
    net = make()
    results = trainer.test(net, valid, ["Accuracy"])
    assert set(results) == {"Accuracy"}
    assert net.training
    scored = trainer.test(net, valid, ["Accuracy"], loss="CrossEntropyLoss")
    assert scored["CrossEntropyLoss/Loss"] > 0
    with pytest.raises(ConfigError, match="nothing to measure"):
        trainer.test(net, valid)
    with pytest.raises(ConfigError, match="no trained model yet"):
        trainer.test(test_loader=valid)


def test_predict_takes_tensors_arrays_and_pictures(tmp_path):
    from PIL import Image

    trainer = distilled(tmp_path, make(NormNet))
    _, valid = loaders()
    batch = valid.batch(0, 0)
    raw = valid.image_set.images[batch.sample]
    trainer.net.train()
    expected = trainer.predict(batch.images)
    assert torch.equal(expected.labels, expected.logits.argmax(1))
    assert torch.allclose(expected.probabilities.sum(1), torch.ones(64))
    assert trainer.net.training  # and dropout was off:
    assert torch.equal(trainer.predict(batch.images).logits, expected.logits)
    pictures = [Image.fromarray(image[0].numpy()) for image in raw]
    for images in (raw, raw.permute(0, 2, 3, 1).numpy(), pictures):
        assert torch.allclose(trainer.predict(images).logits, expected.logits, atol=1e-4)
    single = trainer.predict(batch.images[0])
    assert torch.allclose(single.logits, expected.logits[:1], atol=1e-5)


def test_predict_passes_the_inputs_through_the_students_adapter(tmp_path):
    adapter = {"student_input_adapter": lambda x: x * 2}
    trainer = distilled(tmp_path, kd={"kd_arch_params": adapter})
    x = loaders()[1].batch(0, 0).images
    with torch.no_grad():
        expected = trainer.net.student.eval()(x * 2)
    assert torch.allclose(trainer.predict(x).logits, expected)


def test_predict_asks_for_a_normalisation_that_it_does_not_know(tmp_path):
    batches = [(b.images, b.labels) for b in loaders()[0].batches(0)]
    trainer = trained(tmp_path, loader=batches, valid=False)
    picture = torch.zeros(1, 8, 8, dtype=torch.uint8)
    with pytest.raises(ConfigError, match="mean= and std="):
        trainer.predict(picture)
    assert trainer.predict(picture, mean=[0.5], std=[0.5]).labels.shape == (1,)


def test_predict_tells_what_images_the_student_was_trained_on(tmp_path):
    from PIL import Image

    trainer = distilled(tmp_path, make(NormNet))
    coloured = Image.new("RGB", (8, 8))
    with pytest.raises(ShapeError, match=r"wants 1 channel .*, not 3; .*image.convert\('L'\)"):
        trainer.predict(coloured)
    assert trainer.predict(coloured.convert("L")).labels.shape == (1,)
    with pytest.raises(ShapeError, match=r"trained on images of shape \(1, 8, 8\).*resize"):
        trainer.predict(torch.zeros(1, 16, 16))


def test_predict_calls_the_student_as_the_training_does(tmp_path):
    train, _ = loaders()
    trainer = trained(tmp_path, forward_adapter=lambda net, x: net(x.flatten(1)) * 2)
    x = train.batch(0, 0).images
    with torch.no_grad():
        assert torch.equal(trainer.predict(x).logits, trainer.net.eval()(x) * 2)
