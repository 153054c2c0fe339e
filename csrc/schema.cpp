// The schemas of all operators. A family is a group of related operators. csrc/<family>/<family>.cpp registers their
// kernels. gru4rec_fast/ops/<family>.py has their fake kernels, their autograd formulas and their reference
// implementation in PyTorch, which is the specification.
//
// The reference implementation is registered as the composite implementation, which torch runs on a device without
// native kernels. So torch.compile and opcheck see the same operator on every device.
//
// The C++ namespace grf and the prefix GRF_ are short for gru4rec_fast.
#include "common/every_operator.h"
#include "common/library.h"

GRF_TORCH_LIBRARY(GRF_LIBRARY, m) {
  // session_batch
  m.def(
      "session_batch(Tensor items, Tensor offsets, Tensor? order, Tensor(a!) lane_session, Tensor(b!) lane_position, "
      "Tensor(c!) cursor, SymInt steps) -> (Tensor inputs, Tensor targets, Tensor reset)");

  // negative_sampling: sizes, seed and step are SymInt. With plain ints, torch.compile would recompile for every step
  // number. Operators that also take `counter`, a 0-dim int64 tensor on their device, add its value to `step`. So a
  // captured CUDA graph can count steps.
  m.def("build_alias_table(Tensor mass) -> (Tensor threshold, Tensor alias)");
  m.def(
      "negative_sampling(Tensor threshold, Tensor alias, Tensor log_prob, SymInt n, SymInt seed, SymInt step, "
      "Tensor? counter, SymInt steps) -> (Tensor items, Tensor log_prob)");

  // dropout
  m.def(
      "dropout_mask(SymInt steps, SymInt lanes, SymInt units, float p, SymInt seed, SymInt stream, SymInt step, "
      "Tensor? counter, *, ScalarType dtype, Device device) -> Tensor");

  // gru
  m.def(
      "gru(Tensor gate_inputs, Tensor state, Tensor weight_hh, Tensor? bias_hh, Tensor? reset, Tensor? output_mask, "
      "str form) -> (Tensor output, Tensor saved)");
  m.def(
      "gru_backward(Tensor grad_output, Tensor output, Tensor saved, Tensor state, Tensor weight_hh, Tensor? bias_hh, "
      "Tensor? reset, Tensor? output_mask, str form, bool state_grad=True) -> (Tensor grad_gate_inputs, "
      "Tensor grad_state, Tensor grad_weight_hh, Tensor grad_bias_hh)");

  // sampled_loss: also returns the gradients, which are computed in the same pass as the loss
  m.def(
      "sampled_loss(Tensor hidden, Tensor rows, Tensor? bias, Tensor? live, Tensor? log_q, Tensor? ids, "
      "Tensor? count, str loss, bool in_batch, float batch_size, float elu_param, float bpreg, float label_smoothing)"
      " -> (Tensor loss, Tensor grad_hidden, Tensor grad_rows, Tensor grad_bias)");

  // sparse_update
  m.def(
      "sparse_adam_(Tensor(a!) table, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor index, Tensor grad, "
      "SymInt step, float lr, float beta1, float beta2, float eps) -> ()");
  m.def(
      "sparse_adagrad_(Tensor(a!) table, Tensor(b!) accumulator, Tensor(c!)? velocity, Tensor index, Tensor grad, "
      "float lr, float momentum, float eps) -> ()");

  // training_step: operators of a training step that is captured in a CUDA graph. The operators depend on values that
  // are only on the device: which lanes are live, and whether a loss that is not finite has stopped the updates. So the
  // operators read these values from tensors on the device.
  m.def(
      "step_gather(Tensor embedding, Tensor inputs, Tensor? mask, Tensor weight, Tensor bias, Tensor? log_support, "
      "Tensor items, SymInt lanes, float logq, float sample_alpha, bool bf16) -> (Tensor x, Tensor rows, "
      "Tensor offsets)");
  m.def(
      "step_gru(Tensor x, Tensor weight_ih, Tensor bias_ih, Tensor state, Tensor weight_hh, Tensor bias_hh, "
      "Tensor reset, Tensor? output_mask, SymInt scored_width, bool bf16) -> (Tensor output, Tensor saved, "
      "Tensor scored)");
  m.def(
      "step_gru_backward(Tensor grad_output, Tensor saved, Tensor state, Tensor reset, Tensor? output_mask) -> "
      "(Tensor grad_gate_inputs, Tensor grad_recurrent, Tensor prev_states)");
  m.def(
      "step_loss(Tensor hidden, Tensor rows, Tensor offsets, Tensor live, Tensor? ids, str loss, float batch_size, "
      "float elu_param, float bpreg, float label_smoothing) -> (Tensor losses, Tensor grad_hidden, "
      "Tensor grad_rows)");
  m.def(
      "step_store_losses_(Tensor losses, Tensor active, Tensor(a!) stopped, Tensor(b!) step_losses, Tensor(c!) "
      "enabled) -> "
      "()");
  m.def(
      "step_apply_(Tensor(a!)[] weights, Tensor(b!)[] accumulators, Tensor(c!)[] velocities, Tensor[] grads, "
      "Tensor(d!)[] states, Tensor[] outputs, Tensor enabled, Tensor hyperparameters) -> ()");
  m.def(
      "step_products_(Tensor(a!)[] weights, Tensor(b!)[] accumulators, Tensor(c!)[] velocities, Tensor[] lefts, "
      "Tensor[] rights, Tensor(d!)[] states, Tensor[] outputs, Tensor enabled, Tensor hyperparameters) -> ()");
  m.def(
      "step_rows_(Tensor(a!) weight, Tensor(b!) accumulator, Tensor(c!)? velocity, Tensor(d!)? bias, "
      "Tensor(e!)? bias_accumulator, Tensor(f!)? bias_velocity, Tensor rows, Tensor positions, Tensor grad_inputs, "
      "Tensor? mask, Tensor grad_items, Tensor enabled, Tensor hyperparameters) -> ()");

  // ranking
  m.def("target_rank(Tensor hidden, Tensor weight, Tensor? bias, Tensor targets) -> (Tensor greater, Tensor equal)");
  m.def("top_k(Tensor hidden, Tensor weight, Tensor? bias, int k, Tensor? exclude) -> (Tensor scores, Tensor items)");

  // laplacian_propagation: the graph is symmetric, so the backward pass is the same operator with `transposed` flipped
  m.def(
      "laplacian_propagation(Tensor features, Tensor offsets, Tensor neighbors, Tensor? rows, Tensor? columns, "
      "str matrix, float dropout, SymInt seed, SymInt step, Tensor? counter, bool transposed) -> Tensor");

  // ngcf_layer: `out` holds the new features of the nodes. The other results are saved for the backward pass.
  // P and Q name the matrices of the two terms, for example "symmetric+I". propagated_p and propagated_q are the
  // features multiplied by the matrices of P and of Q, without "+I". propagated_q is empty if both matrices are the
  // same. per_term: the activation is applied to each of the two terms, not to the sum. `flags` has a byte per element
  // of `out`. The bits say whether the arguments of the activations are positive and whether message dropout keeps the
  // element (csrc/ngcf_layer/ngcf_layer.h).
  m.def(
      "ngcf_layer(Tensor features, Tensor offsets, Tensor neighbors, Tensor? rows, Tensor? columns, Tensor weight_1, "
      "Tensor bias_1, Tensor weight_2, Tensor bias_2, str P, str Q, bool per_term, float negative_slope, "
      "float node_dropout, float message_dropout, SymInt seed, SymInt step, Tensor? counter, "
      "SymInt layer) -> (Tensor out, "
      "Tensor propagated_p, Tensor propagated_q, Tensor flags)");
  m.def(
      "ngcf_layer_backward(Tensor grad_out, Tensor features, Tensor offsets, Tensor neighbors, Tensor? rows, "
      "Tensor? columns, Tensor weight_1, Tensor weight_2, Tensor propagated_p, Tensor propagated_q, Tensor flags, "
      "str P, str Q, bool per_term, float negative_slope, float node_dropout, float message_dropout, SymInt seed, "
      "SymInt step, Tensor? counter, SymInt layer) -> (Tensor grad_features, Tensor grad_weight_1, Tensor grad_bias_1, "
      "Tensor grad_weight_2, "
      "Tensor grad_bias_2)");

  // bpr_triples
  m.def(
      "bpr_triples(Tensor offsets, Tensor neighbors, Tensor users, Tensor? starts, SymInt n_users, SymInt n_items, "
      "SymInt n, SymInt seed, SymInt step, Tensor? counter) -> Tensor");
}

GRF_TORCH_LIBRARY_IMPL(GRF_LIBRARY, BackendSelect, m) {
  grf::register_checks(m);
}

GRF_TORCH_LIBRARY_IMPL(GRF_LIBRARY, ADInplaceOrView, m) {
  grf::register_version_counters(m);
}

#ifndef GRF_EMULATED
// For tests only: lets Python call a C++ function that operators use.
TORCH_LIBRARY(gru4rec_fast_private, m) {
  // Returns a [m, k] @ b [k, n] (+ add_to [m, n]), computed by csrc/matrix/product.h. One stride of a and one stride of
  // b must be 1.
  m.def("product(Tensor a, Tensor b, Tensor? add_to, str precision, bool by_blocks) -> Tensor");
}
#endif
