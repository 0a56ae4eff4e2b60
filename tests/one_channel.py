"""A classifier that reads grey images of one channel, as people build for X-rays or depth maps."""

from ultralytics.nn.tasks import ClassificationModel

import yolo_slim_lessons as slim


def one_channel_model(class_names, image_size=32):
    plain = slim.new_model("yolov8n-cls.yaml", class_names, image_size)
    model = ClassificationModel("yolov8n-cls.yaml", ch=1, nc=len(class_names), verbose=False)
    model.names, model.task, model.args = plain.names, plain.task, plain.args
    return model.eval()
