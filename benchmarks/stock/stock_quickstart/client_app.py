"""The clients: every message builds the model and loads the full state dict."""

from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from stock_quickstart.task import get_model, load_data, perturb, train_epoch

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train on this client's texts, if there are any, and send the full state dict back."""
    config: ConfigRecord = message.content.config_records["config"]
    device = str(config["device"])
    model = get_model(str(config["model"]))
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    model.to(device)
    node = context.node_config
    partition, num_partitions = (
        int(str(node.get("partition-id", 0))),
        int(str(node.get("num-partitions", 1))),
    )
    data = load_data(str(config["texts-file"]), partition, num_partitions)
    loss = 0.0
    if data is None:
        perturb(model)
    else:
        rate, size = float(str(config["learning-rate"])), int(str(config["batch-size"]))
        loss = train_epoch(model, (data[0].to(device), data[1].to(device)), rate, size)
    metrics = MetricRecord(
        {"train_loss": loss, "num-examples": 1 if data is None else len(data[1])}
    )
    content = RecordDict(
        {"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}
    )
    return Message(content=content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Load the global model; there are no texts to evaluate it on."""
    model = get_model(str(message.content.config_records["config"]["model"]))
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    metrics = MetricRecord({"eval_loss": 0.0, "num-examples": 1})
    return Message(content=RecordDict({"metrics": metrics}), reply_to=message)
