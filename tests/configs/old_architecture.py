"""Architecture files as users of google/flaxformer have them, without anything of T5X."""

T5_1_1 = """\
from __gin__ import dynamic_registration

from flax import linen
from flaxformer.architectures.t5 import t5_architecture
from flaxformer.components import dense
from flaxformer.components import embedding
from flaxformer.components import layer_norm
from flaxformer.components import relative_position_biases
from flaxformer.components.attention import dense_attention

NUM_HEADS = %gin.REQUIRED
NUM_ENCODER_LAYERS = %gin.REQUIRED
NUM_DECODER_LAYERS = %gin.REQUIRED
HEAD_DIM = %gin.REQUIRED
EMBED_DIM = %gin.REQUIRED
MLP_DIM = %gin.REQUIRED
NUM_EMBEDDINGS = %gin.REQUIRED

ACTIVATION_DTYPE = 'bfloat16'
ACTIVATION_PARTITIONING_DIMS = 1
SCALE = 1.0
DROPOUT_RATE = 0.0

BIAS_INIT = @bias_init/linen.initializers.normal()
bias_init/linen.initializers.normal.stddev = 1e-6

DROPOUT_FACTORY = @dropout_factory/linen.Dropout
dropout_factory/linen.Dropout:
  rate = %DROPOUT_RATE
  broadcast_dims = (-2,)

ARCHITECTURE = @t5_architecture.EncoderDecoder()
t5_architecture.EncoderDecoder:
  encoder_factory = @t5_architecture.Encoder
  decoder_factory = @t5_architecture.Decoder
  shared_token_embedder_factory = @embedding.Embed
  dtype = %ACTIVATION_DTYPE

t5_architecture.Encoder:
  num_layers = %NUM_ENCODER_LAYERS
  layer_factory = @t5_architecture.EncoderLayer
  input_dropout_factory = %DROPOUT_FACTORY
  output_dropout_factory = %DROPOUT_FACTORY
  layer_norm_factory = @layer_norm.T5LayerNorm
  position_embedder_factory = None
  shared_relative_position_bias_factory = @relative_position_biases.RelativePositionBiases
  dtype = %ACTIVATION_DTYPE

t5_architecture.EncoderLayer:
  attention = @dense_attention.MultiHeadDotProductAttention()
  mlp = @dense.MlpBlock()
  dropout_factory = %DROPOUT_FACTORY
  layer_norm_factory = @layer_norm.T5LayerNorm
  activation_partitioning_dims = %ACTIVATION_PARTITIONING_DIMS

t5_architecture.Decoder:
  num_layers = %NUM_DECODER_LAYERS
  layer_factory = @t5_architecture.DecoderLayer
  dropout_factory = %DROPOUT_FACTORY
  layer_norm_factory = @layer_norm.T5LayerNorm
  output_logits_factory = @output_logits/dense.DenseGeneral
  position_embedder_factory = None
  shared_relative_position_bias_factory = @relative_position_biases.RelativePositionBiases
  dtype = %ACTIVATION_DTYPE

output_logits/dense.DenseGeneral:
  features = %NUM_EMBEDDINGS
  use_bias = False
  dtype = 'float32'
  kernel_init = @output_logits_kernel_init/linen.initializers.variance_scaling()
  bias_init = %BIAS_INIT
  kernel_axis_names = ["embed", "vocab"]
output_logits_kernel_init/linen.initializers.variance_scaling:
  scale = %SCALE
  mode = 'fan_in'
  distribution = 'truncated_normal'

t5_architecture.DecoderLayer:
  self_attention = @dense_attention.MultiHeadDotProductAttention()
  encoder_decoder_attention = @dense_attention.MultiHeadDotProductAttention()
  mlp = @dense.MlpBlock()
  dropout_factory = %DROPOUT_FACTORY
  layer_norm_factory = @layer_norm.T5LayerNorm
  activation_partitioning_dims = %ACTIVATION_PARTITIONING_DIMS

embedding.Embed:
  num_embeddings = %NUM_EMBEDDINGS
  features = %EMBED_DIM
  cast_input_dtype = 'int32'
  dtype = %ACTIVATION_DTYPE
  attend_dtype = 'float32'
  embedding_init = @token_embedder_init/linen.initializers.normal()
  one_hot = True
  name = 'token_embedder'
token_embedder_init/linen.initializers.normal.stddev = 1.0

dense_attention.MultiHeadDotProductAttention:
  num_heads = %NUM_HEADS
  dtype = %ACTIVATION_DTYPE
  head_dim = %HEAD_DIM
  kernel_init = @attention_kernel_init/linen.initializers.variance_scaling()
  bias_init = %BIAS_INIT
  use_bias = False
  broadcast_dropout = True
  dropout_rate = %DROPOUT_RATE
attention_kernel_init/linen.initializers.variance_scaling:
  scale = %SCALE
  mode = 'fan_in'
  distribution = 'normal'

relative_position_biases.RelativePositionBiases:
  num_heads = %NUM_HEADS
  num_buckets = 32
  max_distance = 128
  dtype = %ACTIVATION_DTYPE
  embedding_init = @relative_position_bias_init/linen.initializers.variance_scaling()
relative_position_bias_init/linen.initializers.variance_scaling:
  scale = %SCALE
  mode = 'fan_avg'
  distribution = 'uniform'

dense.MlpBlock:
  use_bias = False
  intermediate_dim = %MLP_DIM
  activations = ('gelu', 'linear')
  kernel_init = @mlp_kernel_init/linen.initializers.variance_scaling()
  bias_init = %BIAS_INIT
  intermediate_dropout_rate = %DROPOUT_RATE
  final_dropout_rate = 0
  dtype = %ACTIVATION_DTYPE
mlp_kernel_init/linen.initializers.variance_scaling:
  scale = %SCALE
  mode = 'fan_in'
  distribution = 'truncated_normal'

layer_norm.T5LayerNorm.dtype = %ACTIVATION_DTYPE
"""

T5_1_0 = T5_1_1.replace(
    "output_logits_factory = @output_logits/dense.DenseGeneral", "output_logits_factory = None"
).replace("activations = ('gelu', 'linear')", "activations = ('relu',)")

MACROS = ("NUM_ENCODER_LAYERS", "NUM_DECODER_LAYERS", "NUM_HEADS", "HEAD_DIM", "EMBED_DIM", "MLP_DIM", "NUM_EMBEDDINGS")
SIZES = {
    ("t5_1_0", "small"): (6, 6, 8, 64, 512, 2048, 32128),
    ("t5_1_0", "base"): (12, 12, 12, 64, 768, 3072, 32128),
    ("t5_1_0", "large"): (24, 24, 16, 64, 1024, 4096, 32128),
    ("t5_1_0", "xl"): (24, 24, 32, 128, 1024, 16384, 32128),
    ("t5_1_0", "xxl"): (24, 24, 128, 128, 1024, 65536, 32128),
    ("t5_1_1", "small"): (8, 8, 6, 64, 512, 1024, 32128),
    ("t5_1_1", "base"): (12, 12, 12, 64, 768, 2048, 32128),
    ("t5_1_1", "large"): (24, 24, 16, 64, 1024, 2816, 32128),
    ("t5_1_1", "xl"): (24, 24, 32, 64, 2048, 5120, 32128),
    ("t5_1_1", "xxl"): (24, 24, 64, 64, 4096, 10240, 32128),
}
