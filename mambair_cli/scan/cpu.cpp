// Python's door to the CPU kernels: choice of instruction set, division of the work, nothing else.
// Shapes and dtypes are checked in cpu.py; here arrays are trusted.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "around.hpp"
#include "chosen.hpp"
#include "cpu_kernel.hpp"
#include "parallel.hpp"
#include "plan.hpp"
#include "tensor.hpp"

namespace nb = nanobind;

namespace {

void use_instruction_set(const std::string& name) {
  if (!choose(name)) throw nb::value_error(("this machine cannot run the '" + name + "' kernel").c_str());
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> out;
  for (const Kernels* k : available()) out.push_back(k->name);
  return out;
}

// Floats that the forward keeps for the backward.
int64_t kept_size(int64_t batch, int64_t directions, int64_t steps, int64_t channels, int64_t states) {
  const int64_t width = chosen->width, blocks = (channels + width - 1) / width;
  return batch * directions * blocks * ((steps + KEPT - 1) / KEPT) * states * width;
}

template <class A>
Dtype dtype_of(const A& a) {
  return a.item == 4 ? Dtype::float32 : Dtype::bfloat16;
}

// u, delta (batch, length, channels) shared by the directions, or (batch, directions, length, channels);
// proj (batch, length, directions, rank + 2 states), its directions proj_direction apart: rows of one beside those of
// the others, or all of one before the next; orders (directions, steps) or (batch, directions, steps).
Scan describe(const Array& u, const Maybe& delta, const Strided& proj, int64_t proj_direction, const Maybe& dt_weight, const Maybe& dt_bias,
              const Array& A, const Maybe& D, const Maybe& orders, bool softplus) {
  Scan s{};
  s.batch = int(u.shape(0));
  s.length = int(u.shape(u.ndim() - 2));
  s.directions = int(A.shape(0));
  s.channels = int(A.shape(1));
  s.states = int(A.shape(2));
  s.rank = dt_weight ? int(dt_weight->shape(2)) : 0;
  s.dtype = dtype_of(u);
  s.u = u.data();
  s.delta = pointer<void>(delta);
  s.proj = proj.data();
  const int64_t plane = int64_t(s.length) * s.channels;
  const bool shared = u.ndim() == 3;
  s.u_row = s.channels;
  s.u_direction = shared ? 0 : plane;
  s.u_batch = shared ? plane : s.directions * plane;
  const int64_t size = s.rank + 2 * s.states;
  s.proj_direction = proj_direction;
  s.proj_row = proj_direction == size ? size * s.directions : size;
  s.proj_batch = size * s.directions * s.length;
  s.dt_weight = pointer<float>(dt_weight);
  s.dt_bias = pointer<float>(dt_bias);
  s.A = (const float*)A.data();
  s.D = pointer<float>(D);
  s.orders = pointer<int32_t>(orders);
  s.steps = orders ? int(orders->shape(orders->ndim() - 1)) : s.length;
  s.orders_direction = s.steps;
  s.orders_batch = orders && orders->ndim() == 3 ? int64_t(s.directions) * s.steps : 0;
  s.softplus = softplus;
  return s;
}

// y (parts, batch, length, channels): each part sums as many of the directions, and the caller adds the parts, two
// halves of the directions apart; so the sums are the same with any number of parts, unless a direction visits a
// position twice. Or, without `reduce`, (batch, directions, length, channels), one each. `once`: every direction visits
// every position once, so y may hold anything; else zeros.
void forward(Array u, Maybe delta, Strided proj, int64_t proj_direction, Maybe dt_weight, Maybe dt_bias, Array A, Maybe D,
             Maybe orders, bool softplus, Array y, Maybe kept, bool reduce, bool once, int threads) {
  const Scan s = describe(u, delta, proj, proj_direction, dt_weight, dt_bias, A, D, orders, softplus);
  const Kernels& kernel = *chosen;
  const int64_t plane = int64_t(s.length) * s.channels;
  const Plan plan(s, kernel.width, reduce ? int(y.shape(0)) : s.directions, threads);
  const int chains = s.batch * plan.parts * plan.groups;
  const int64_t block = int64_t(s.states) * kernel.width, chain = plan.blocks * block;
  auto output = [&](int part, int k) {
    Output o{};
    o.fresh = once && k == part * s.directions / plan.parts;  // the first to get there
    o.kept = pointer<float>(kept);
    o.y_row = s.channels;
    o.y = (float*)y.data() + (reduce ? int64_t(part) * s.batch * plane : 0);
    o.y_batch = reduce ? plane : plane * s.directions;
    o.y_direction = reduce ? 0 : plane;
    return o;
  };
  nb::gil_scoped_release release;
  if (plan.at_once) {
    std::vector<float> states(size_t(chains * plan.pieces * chain)), ends(states.size()), times(states.size());
    auto stretch = [&](int c, int piece) {
      const int64_t at = (int64_t(c) * plan.pieces + piece) * chain;
      return Stretch{piece * plan.steps, std::min((piece + 1) * plan.steps, s.steps), nullptr, &ends[size_t(at)],
                     &times[size_t(at)]};
    };
    auto visit = [&](int c, int piece, bool write) {
      const int part = c % plan.parts, b = c / plan.parts / plan.groups;
      const Share share(plan, c / plan.parts % plan.groups);
      Stretch over = stretch(c, piece);
      if (write) over.state = &states[size_t((int64_t(c) * plan.pieces + piece) * chain)], over.end = nullptr;
      kernel.scan_forward(s, output(part, part), b, part, share.begin, share.end, over);
    };
    const int inner = plan.pieces - 1;  // the last one's end is nobody's beginning
    parallel::run(chains * inner, threads, [&](int task) { visit(task / inner, task % inner, false); });
    for (int c = 0; c < chains; c++)
      for (int piece = 0; piece < inner; piece++) {
        const Share share(plan, c / plan.parts % plan.groups);
        float* state = &states[size_t((int64_t(c) * plan.pieces + piece) * chain)];
        std::copy(state, state + chain, state + chain);
        kernel.scan_carry(s, c % plan.parts, share.begin, share.end, stretch(c, piece), state + chain);
      }
    parallel::run(chains * plan.pieces, threads, [&](int task) { visit(task / plan.pieces, task % plan.pieces, true); });
    return;
  }
  const int longest = (s.directions + plan.parts - 1) / plan.parts;  // directions of a part
  std::vector<float> states(size_t(chains * chain)), ends(plan.segments ? states.size() : 0), times(ends.size());
  parallel::run_chains(chains, longest * plan.pieces, threads, [&](int c, int at) {
    const int part = c % plan.parts, b = c / plan.parts / plan.groups, piece = at % plan.pieces;
    const int k = part * s.directions / plan.parts + at / plan.pieces;
    if (k >= (part + 1) * s.directions / plan.parts) return;
    const Share share(plan, c / plan.parts % plan.groups);
    float* state = &states[size_t(c * chain)];
    if (piece == 0) std::fill(state, state + chain, 0.0f);
    Stretch over{piece * plan.steps, std::min((piece + 1) * plan.steps, s.steps), state, nullptr, nullptr};
    if (plan.segments) over.end = &ends[size_t(c * chain)], over.time = &times[size_t(c * chain)];
    kernel.scan_forward(s, output(part, k), b, k, share.begin, share.end, over);
    if (plan.segments) kernel.scan_carry(s, k, share.begin, share.end, over, state);
  });
}

int scan_parts(int64_t batch, int64_t directions, int64_t channels, int threads) {
  return Plan::parts_for(batch, directions, (channels + chosen->width - 1) / chosen->width, threads);
}

// What a scan would be cut into for so many threads: what can run at a time, and how often it goes through the sequence.
std::tuple<int, int> scan_tasks(int batch, int directions, int steps, int channels, int threads) {
  Scan s{};
  s.batch = batch, s.directions = directions, s.steps = steps, s.channels = channels;
  const Plan plan(s, chosen->width, scan_parts(batch, directions, channels, threads), threads);
  const int chains = batch * plan.parts * plan.groups;
  return plan.at_once ? std::tuple{chains * plan.pieces, 2} : std::tuple{chains, 1};
}

int last_tasks() { return parallel::last; }

// Gradients of everything, float32 and zeroed by the caller. g_u (halves, ...), g_proj (groups, ...) and the parameters'
// (batch, ...) have one copy for each set of tasks that would otherwise write to the same place: a half of the
// directions, a group of channel blocks, an image. Summed in order, the result does not depend on the threads.
void backward(Array u, Maybe delta, Array proj, Maybe dt_weight, Maybe dt_bias, Array A, Maybe D, Maybe orders,
              bool softplus, Array gy, Array kept, Array g_u, Maybe g_delta, Array g_proj, Maybe g_dt_weight, Array g_dt_bias,
              Array g_A, Array g_D, bool reduced, int threads) {
  const Scan s = describe(u, delta, proj, proj.shape(3), dt_weight, dt_bias, A, D, orders, softplus);
  const Kernels& kernel = *chosen;
  const int blocks = (s.channels + kernel.width - 1) / kernel.width, groups = int(g_proj.shape(0));
  const int halves = int(g_u.shape(0));
  const int64_t rows = int64_t(s.directions) * s.channels, plane = int64_t(s.length) * s.channels;
  nb::gil_scoped_release release;
  parallel::run(s.batch * groups * halves, threads, [&](int task) {
    const int half = task % halves, group = task / halves % groups, b = task / halves / groups;
    Gradients g{};
    g.kept = (float*)kept.data();
    g.y = (const float*)gy.data();
    g.y_row = s.channels;
    g.y_batch = reduced ? plane : plane * s.directions;
    g.y_direction = reduced ? 0 : plane;
    g.u = (float*)g_u.data() + int64_t(half) * s.batch * s.u_batch;
    g.delta = pointer<float>(g_delta);
    g.proj = (float*)g_proj.data() + int64_t(group) * s.batch * s.proj_batch;
    g.dt_weight = s.rank ? pointer<float>(g_dt_weight) + b * rows * s.rank : nullptr;
    g.dt_bias = (float*)g_dt_bias.data() + b * rows;
    g.A = (float*)g_A.data() + b * rows * s.states;
    g.D = (float*)g_D.data() + b * rows;
    for (int k = half * s.directions / halves; k < (half + 1) * s.directions / halves; k++)
      kernel.scan_backward(s, g, b, k, group * blocks / groups, (group + 1) * blocks / groups);
  });
}

// x (batch, height, width, channels) whose pixels lie x_row apart; taps (9, channels)
Depthwise describe_depthwise(const Strided& x, int64_t x_row, const Array& taps, const Array& bias, int dilation,
                             bool silu, void* y) {
  return {int(x.shape(0)), int(x.shape(1)), int(x.shape(2)), int(x.shape(3)), dilation, silu, dtype_of(x), x.data(),
          x_row, (const float*)taps.data(), (const float*)bias.data(), y};
}

void depthwise(Strided x, int64_t x_row, Array taps, Array bias, int dilation, bool silu, Array y, int threads) {
  const Depthwise d = describe_depthwise(x, x_row, taps, bias, dilation, silu, y.data());
  const Kernels& kernel = *chosen;
  const int band = 2, bands = (d.height + band - 1) / band;
  nb::gil_scoped_release release;
  parallel::run(d.batch * bands, threads, [&](int task) {
    const int begin = task % bands * band;
    kernel.depthwise(d, task / bands, begin, std::min(begin + band, d.height));
  });
}

// g_parameters (batch, 10, channels)
void depthwise_backward(Strided x, int64_t x_row, Array taps, Array bias, int dilation, bool silu, Array gy,
                        Maybe scratch, Array gx, Array g_parameters, int threads) {
  const DepthwiseBackward d{describe_depthwise(x, x_row, taps, bias, dilation, silu, nullptr), gy.data(),
                            pointer<float>(scratch), (float*)gx.data(), (float*)g_parameters.data()};
  const Kernels& kernel = *chosen;
  const int blocks = (d.forward.channels + kernel.width - 1) / kernel.width;
  nb::gil_scoped_release release;
  parallel::run(d.forward.batch * blocks, threads,
                [&](int task) { kernel.depthwise_backward(d, task / blocks, task % blocks * kernel.width); });
}

// y (rows, channels), its rows y_row apart; z likewise, or none
NormGate describe_norm(const Strided& y, int64_t y_row, const std::optional<Strided>& z, int64_t z_row, const Array& weight,
                       const Array& bias, float eps, void* out) {
  return {int64_t(y.shape(0)), int(y.shape(1)), dtype_of(y), y.data(), y_row, z ? z->data() : nullptr, z_row,
          (const float*)weight.data(), (const float*)bias.data(), eps, out};
}

void norm_gate(Strided y, int64_t y_row, std::optional<Strided> z, int64_t z_row, Array weight, Array bias, float eps, Array out,
               int threads) {
  const NormGate g = describe_norm(y, y_row, z, z_row, weight, bias, eps, out.data());
  const Kernels& kernel = *chosen;
  const int64_t band = 128;
  nb::gil_scoped_release release;
  parallel::run(int((g.rows + band - 1) / band), threads, [&](int task) {
    kernel.norm_gate(g, task * band, std::min((task + 1) * band, g.rows));
  });
}

// g_parameters (bands, 2, channels), zeroed: one copy for each band of rows
void norm_gate_backward(Strided y, int64_t y_row, std::optional<Strided> z, int64_t z_row, Array weight, Array bias, float eps,
                        Array g_out, Array gy, Maybe gz, Array g_parameters, int threads) {
  const NormGateBackward g{describe_norm(y, y_row, z, z_row, weight, bias, eps, nullptr), g_out.data(), gy.data(),
                           pointer<void>(gz)};
  const Kernels& kernel = *chosen;
  const int64_t bands = int64_t(g_parameters.shape(0)), rows = g.forward.rows;
  nb::gil_scoped_release release;
  parallel::run(int(bands), threads, [&](int task) {
    kernel.norm_gate_backward(g, task * rows / bands, (task + 1) * rows / bands,
                              (float*)g_parameters.data() + int64_t(task) * 2 * g.forward.channels);
  });
}

// Every thread runs 12 * width * rounds multiply-adds; returns their number.
int64_t multiply_adds(int64_t rounds, int threads) {
  const Kernels& kernel = *chosen;
  nb::gil_scoped_release release;
  std::vector<float> sums(size_t(threads) * 16);
  parallel::run(threads, threads, [&](int task) { sums[size_t(task) * 16] = kernel.multiply_adds(rounds); });
  return int64_t(12) * kernel.width * rounds * threads;
}

}  // namespace

NB_MODULE(_cpu, m) {
  m.def("instruction_sets", &instruction_sets, "Instruction sets this machine can run, best first.");
  m.def("use_instruction_set", &use_instruction_set, "Choose one by name (tests).");
  m.attr("MAX_STATES") = MAX_STATES;
  m.attr("MAX_RANK") = MAX_RANK;
  m.def("kept_size", &kept_size);
  m.def("scan_parts", &scan_parts);
  m.def("scan_tasks", &scan_tasks);
  m.def("last_tasks", &last_tasks, "What the last call from this thread was cut into.");
  m.def("forward", &forward, nb::arg(), nb::arg().none(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg().none(), nb::arg(),
        nb::arg().none(), nb::arg().none(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg(), nb::arg(), nb::arg());
  m.def("backward", &backward, nb::arg(), nb::arg().none(), nb::arg(), nb::arg().none(), nb::arg().none(), nb::arg(),
        nb::arg().none(), nb::arg().none(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg(),
        nb::arg().none(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg());
  m.def("depthwise", &depthwise);
  m.def("depthwise_backward", &depthwise_backward, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(),
        nb::arg(), nb::arg().none(), nb::arg(), nb::arg(), nb::arg());
  m.attr("MAX_HEAD") = MAX_HEAD;
  m.def("linear", &around::linear, nb::arg(), nb::arg(), nb::arg().none(), nb::arg().none(), nb::arg(), nb::arg(), nb::arg().none(),
        nb::arg(), nb::arg().none(), nb::arg().none(), nb::arg().none(), nb::arg(), nb::arg(), nb::arg());
  m.def("attention", &around::attention);
  m.def("attend", &around::attend);
  m.def("route", &around::route);
  m.def("visit", &around::visit);
  m.def("multiply_adds", &multiply_adds);
  m.def("filter", &around::filter, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg(),
        nb::arg(), nb::arg(), nb::arg());
  m.def("norm_gate", &norm_gate, nb::arg(), nb::arg(), nb::arg().none(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(),
        nb::arg());
  m.def("norm_gate_backward", &norm_gate_backward, nb::arg(), nb::arg(), nb::arg().none(), nb::arg(), nb::arg(), nb::arg(),
        nb::arg(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg(), nb::arg());
}
