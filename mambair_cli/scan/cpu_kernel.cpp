// The selective scan along one sequence. Its channels are cut into blocks of one vector each; a chunk of steps is run
// for all blocks before the next chunk, so that positions far apart in memory are visited once and not once per block.
// Within a chunk the state of a block lives in registers. Compiled once per instruction set; see CMakeLists.txt.
#include "cpu_kernel.hpp"

#include <vector>

#include "simd.hpp"

namespace MAMBAIR_ISA {
namespace {

// Parameters of one direction for one block of channels, transposed to one vector per state or rank.
struct Block {
  int lanes;
  vf bias, D;
  vf A[MAX_STATES], weight[MAX_RANK];

  Block(const Scan& s, int k, int first) : lanes(s.channels - first < W ? s.channels - first : W) {
    const size_t row = size_t(k) * s.channels + first;
    bias = s.dt_bias ? load(s.dt_bias + row, lanes) : vf{};
    D = s.D ? load(s.D + row, lanes) : vf{};
    for (int n = 0; n < s.states; n++) A[n] = gather(s.A + row * s.states + n, s.states);
    for (int r = 0; r < s.rank; r++) weight[r] = gather(s.dt_weight + row * s.rank + r, s.rank);
  }

  vf gather(const float* p, int stride) const {
    vf v{};
    for (int i = 0; i < lanes; i++) v[i] = p[size_t(i) * stride];
    return v;
  }
};

// Where one sequence lies: position of step t, and rows of u and proj at a position.
template <class T>
struct Sequence {
  const T *u, *delta, *proj;
  const int32_t* order;
  int64_t u_row, proj_row;
  int steps;

  Sequence(const Scan& s, int b, int k, int first)
      : u((const T*)s.u + b * s.u_batch + k * s.u_direction + first),
        delta(s.delta ? (const T*)s.delta + b * s.u_batch + k * s.u_direction + first : nullptr),
        proj((const T*)s.proj + b * s.proj_batch + k * s.proj_direction),
        order(s.orders ? s.orders + b * s.orders_batch + k * s.orders_direction : nullptr),
        u_row(s.u_row), proj_row(s.proj_row), steps(s.steps) {}

  int position(int t) const { return order ? order[t] : t; }

  void prefetch(int t, int bytes) const {
    if (t >= steps) return;
    const int64_t l = position(t);
    if (l < 0) return;
    __builtin_prefetch(u + l * u_row);
    prefetch_row(proj + l * proj_row, bytes);
  }

  static void prefetch_row(const void* row, int bytes) {
    for (int i = 0; i < bytes; i += 64) __builtin_prefetch((const char*)row + i);
  }
};

// Rows [low-rank | B | C] of up to CHUNK steps, side by side: in the map they may lie so that they drive each other out
// of the cache. Shared by the blocks.
template <class T>
struct Rows {
  static constexpr int SIZE = MAX_RANK + 2 * MAX_STATES;
  int64_t position[CHUNK];
  float at[CHUNK][SIZE];

  void fetch(const Sequence<T>& q, int size, int begin, int count) {
    for (int i = 0; i < count; i++) {
      const int64_t l = position[i] = q.position(begin + i);
      if (l < 0)
        std::memset(at[i], 0, size_t(size) * 4);
      else
        for (int j = 0; j < size; j += W) store(at[i] + j, load(q.proj + l * q.proj_row + j, size - j), size - j);
    }
  }
};

// dt and u of up to CHUNK steps of one block.
template <class T>
struct Chunk {
  vf dt[CHUNK], u[CHUNK], e[CHUNK], raw[CHUNK];

  void prepare(const Scan& s, const Sequence<T>& q, const Block& block, const Rows<T>& rows, int count) {
    for (int i = 0; i < count; i++) {
      const int64_t l = rows.position[i];
      const float* row = rows.at[i];
      vf t = block.bias;
      u[i] = vf{};
      if (l >= 0) {
        u[i] = load(q.u + l * q.u_row, block.lanes);
        if (q.delta) t += load(q.delta + l * q.u_row, block.lanes);
        vf t2{};
        int r = 0;
        for (; r + 1 < s.rank; r += 2) {
          t += block.weight[r] * row[r];
          t2 += block.weight[r + 1] * row[r + 1];
        }
        if (r < s.rank) t += block.weight[r] * row[r];
        t += t2;
      }
      raw[i] = t;
    }
    for (int i = 0; i < count; i++) dt[i] = s.softplus ? softplus(raw[i], e[i]) : raw[i];
  }
};

// What a pass over some steps is for: y; what the steps make of a state of zero; or both.
enum class Pass { y, ends, both };

// N > 0 is the number of states known at compile time; 0 reads it at run time. All passes round alike, so that it does
// not matter which of them made a number.
template <class T, int N, Pass PASS>
void forward(const Scan& s, const Output& out, int b, int k, int begin_block, int end_block, const Stretch& stretch) {
  constexpr int SIZE = N ? N : MAX_STATES;
  constexpr bool WRITES = PASS != Pass::ends, ENDS = PASS != Pass::y;
  const int states = N ? N : s.states, size = s.rank + 2 * states;
  struct Part {
    Block block;
    Sequence<T> q;
    float *y, *kept;
    vf a[SIZE] = {}, h[SIZE] = {}, end[ENDS ? SIZE : 1] = {}, time = {};
  };
  std::vector<Part> parts;
  parts.reserve(size_t(end_block - begin_block));
  for (int i = begin_block; i < end_block; i++) {
    const int first = i * W;
    parts.push_back({Block(s, k, first), Sequence<T>(s, b, k, first),
                     WRITES ? out.y + b * out.y_batch + k * out.y_direction + first : nullptr,
                     WRITES && out.kept ? kept_states(out.kept, s, W, b, k, first, stretch.from) : nullptr});
    for (int n = 0; n < states; n++) {
      parts.back().a[n] = parts.back().block.A[n] * LOG2E;
      if (WRITES) parts.back().h[n] = load(stretch.state + (int64_t(i - begin_block) * states + n) * W, W);
    }
  }
  Rows<T> rows;
  Chunk<T> chunk;
  for (int begin = stretch.from; begin < stretch.to; begin += CHUNK) {
    const int left = stretch.to - begin, count = left < CHUNK ? left : CHUNK;
    rows.fetch(parts.front().q, size, begin, count);
    for (Part& part : parts) {
      vf h[SIZE], end[ENDS ? SIZE : 1];
      for (int n = 0; n < states; n++) {
        h[n] = part.h[n];
        if (ENDS) end[n] = part.end[n];
      }
      chunk.prepare(s, part.q, part.block, rows, count);
      const int lanes = part.block.lanes;
      const bool leader = &part == &parts.front();
      for (int i = 0; i < count; i++) {
        if (i < left - CHUNK) {  // of the next chunk, as far ahead as it takes and no further
          const int64_t l = part.q.position(begin + CHUNK + i);
          if (l >= 0) {
            __builtin_prefetch(part.q.u + l * part.q.u_row);
            if (WRITES) __builtin_prefetch(part.y + l * out.y_row, 1);
            if (leader) part.q.prefetch_row(part.q.proj + l * part.q.proj_row, size * int(sizeof(T)));
          }
        }
        if (WRITES && part.kept && i % KEPT == 0)
          for (int n = 0; n < states; n++, part.kept += W) store(part.kept, h[n], W);
        const vf dt = chunk.dt[i], du = dt * chunk.u[i];
        const float *B = rows.at[i] + s.rank, *C = B + states;
        vf even = part.block.D * chunk.u[i], odd = vf{};
        if (ENDS) part.time += dt;
#pragma GCC unroll 16
        for (int n = 0; n < states; n++) {
          const vf decay = exp2_negative(dt * part.a[n]), input = du * B[n];
          if (ENDS) end[n] = multiply_add(decay, end[n], input);
          if (!WRITES) continue;
          h[n] = multiply_add(decay, h[n], input);
          (n & 1 ? odd : even) = multiply_add(h[n], splat(C[n]), n & 1 ? odd : even);
        }
        const int64_t l = rows.position[i];
        if (!WRITES || l < 0) continue;
        float* p = part.y + l * out.y_row;
        store(p, (out.fresh ? vf{} : load(p, lanes)) + (even + odd), lanes);
      }
      for (int n = 0; n < states; n++) {
        part.h[n] = h[n];
        if (ENDS) part.end[n] = end[n];
      }
    }
  }
  for (size_t i = 0; i < parts.size(); i++) {
    for (int n = 0; n < states; n++) {
      const int64_t at = (int64_t(i) * states + n) * W;
      if (PASS == Pass::y) store(stretch.state + at, parts[i].h[n], W);
      if (ENDS) store(stretch.end + at, parts[i].end[n], W);
    }
    if (ENDS) store(stretch.time + int64_t(i) * W, parts[i].time, W);
  }
}

template <class T, Pass PASS>
void forward_states(const Scan& s, const Output& out, int b, int k, int begin, int end, const Stretch& stretch) {
  switch (s.states) {
    case 8: return forward<T, 8, PASS>(s, out, b, k, begin, end, stretch);
    case 10: return forward<T, PASS == Pass::y ? 10 : 0, PASS>(s, out, b, k, begin, end, stretch);
    case 16: return forward<T, 16, PASS>(s, out, b, k, begin, end, stretch);
    default: return forward<T, 0, PASS>(s, out, b, k, begin, end, stretch);
  }
}

template <class T>
void forward_pass(const Scan& s, const Output& out, int b, int k, int begin, int end, const Stretch& stretch) {
  if (!stretch.end) return forward_states<T, Pass::y>(s, out, b, k, begin, end, stretch);
  if (!stretch.state) return forward_states<T, Pass::ends>(s, out, b, k, begin, end, stretch);
  return forward_states<T, Pass::both>(s, out, b, k, begin, end, stretch);
}

void scan_forward(const Scan& s, const Output& out, int b, int k, int begin, int end, const Stretch& stretch) {
  (s.dtype == Dtype::float32 ? forward_pass<float> : forward_pass<bf16>)(s, out, b, k, begin, end, stretch);
}

// state = exp(A time) state + end
void scan_carry(const Scan& s, int k, int begin, int end, const Stretch& stretch, float* state) {
  for (int i = begin; i < end; i++) {
    const Block block(s, k, i * W);
    const vf time = load(stretch.time + int64_t(i - begin) * W, W);
    for (int n = 0; n < s.states; n++) {
      const int64_t at = (int64_t(i - begin) * s.states + n) * W;
      const vf decay = exp2_negative(time * (block.A[n] * LOG2E));
      store(state + at, multiply_add(decay, load(state + at, W), load(stretch.end + at, W)), W);
    }
  }
}

// Replays every KEPT steps from the state that the forward kept: memory O(steps * states / KEPT) per block.
template <class T, int N>
void backward(const Scan& s, const Gradients& grad, int b, int k, int begin_block, int end_block) {
  constexpr int SIZE = N ? N : MAX_STATES;
  const int states = N ? N : s.states, size = s.rank + 2 * states;
  struct Part {
    Block block;
    Sequence<T> q;
    int first;
    const float* kept;
    vf dh[SIZE] = {}, dA[SIZE] = {}, d_weight[MAX_RANK] = {}, d_bias = {}, dD = {};
  };
  std::vector<Part> parts;
  parts.reserve(size_t(end_block - begin_block));
  for (int i = begin_block; i < end_block; i++)
    parts.push_back({Block(s, k, i * W), Sequence<T>(s, b, k, i * W), i * W,
                     kept_states(grad.kept, s, W, b, k, i * W, 0)});
  Rows<T> rows;
  Chunk<T> chunk;
  vf history[KEPT + 1][SIZE], decay[KEPT][SIZE];
  std::vector<vf> partial(size_t(KEPT) * size);  // gradients of the rows of proj, lanes not yet added up
  float* g_proj = grad.proj + b * s.proj_batch + k * s.proj_direction;

  for (int c = (s.steps - 1) / KEPT; c >= 0; c--) {
    const int begin = c * KEPT, count = s.steps - begin < KEPT ? s.steps - begin : KEPT;
    for (vf& v : partial) v = vf{};
    rows.fetch(parts.front().q, size, begin, count);
    for (Part& part : parts) {
      const int lanes = part.block.lanes;
      const float* gy = grad.y + b * grad.y_batch + k * grad.y_direction + part.first;
      const int64_t u_offset = b * s.u_batch + k * s.u_direction + part.first;
      vf h[SIZE], dh[SIZE];
      for (int n = 0; n < states; n++) {
        history[0][n] = h[n] = load(part.kept + (size_t(c) * states + n) * W, W);
        dh[n] = part.dh[n];
      }
      chunk.prepare(s, part.q, part.block, rows, count);
      for (int i = 0; i < count; i++) {
        const vf dt = chunk.dt[i], du = dt * chunk.u[i];
        const float* B = rows.at[i] + s.rank;
#pragma GCC unroll 16
        for (int n = 0; n < states; n++) {
          decay[i][n] = exp2_negative(dt * (part.block.A[n] * LOG2E));
          history[i + 1][n] = h[n] = decay[i][n] * h[n] + du * B[n];
        }
      }
      for (int i = count - 1; i >= 0; i--) {
        if (begin) {  // the steps that come next lie before these
          const int64_t next = part.q.position(begin - KEPT + i);
          if (next >= 0) {
            part.q.prefetch(begin - KEPT + i, size * int(sizeof(T)));
            __builtin_prefetch(gy + next * grad.y_row);
            __builtin_prefetch(grad.u + u_offset + next * s.u_row);
            part.q.prefetch_row(g_proj + next * s.proj_row, size * 4);
          }
        }
        const int64_t l = rows.position[i];
        const vf dt = chunk.dt[i], u = chunk.u[i], du = dt * u;
        const vf g = l < 0 ? vf{} : load(gy + l * grad.y_row, lanes);
        const float *B = rows.at[i] + s.rank, *C = B + states;
        vf *g_low = &partial[size_t(i) * size], *g_B = g_low + s.rank, *g_C = g_B + states;
        vf d_du{}, d_dt{};
#pragma GCC unroll 16
        for (int n = 0; n < states; n++) {
          dh[n] += g * C[n];
          g_B[n] += dh[n] * du;
          g_C[n] += g * history[i + 1][n];
          d_du += dh[n] * B[n];
          dh[n] *= decay[i][n];
          const vf through = dh[n] * history[i][n];
          d_dt += through * part.block.A[n];
          part.dA[n] += through * dt;
        }
        d_dt += d_du * u;
        const vf d_raw = s.softplus ? d_dt * sigmoid(chunk.raw[i], chunk.e[i]) : d_dt;
        part.d_bias += d_raw;
        if (l < 0) continue;
        part.dD += u * g;
        float* gu = grad.u + u_offset + l * s.u_row;
        store(gu, load(gu, lanes) + (d_du * dt + part.block.D * g), lanes);
        if (grad.delta) store(grad.delta + u_offset + l * s.u_row, d_raw, lanes);
        for (int r = 0; r < s.rank; r++) {
          part.d_weight[r] += d_raw * rows.at[i][r];
          g_low[r] += d_raw * part.block.weight[r];
        }
      }
      for (int n = 0; n < states; n++) part.dh[n] = dh[n];
    }
    for (int i = 0; i < count; i++)
      if (rows.position[i] >= 0) add_sums(&partial[size_t(i) * size], size, g_proj + rows.position[i] * s.proj_row);
  }

  for (const Part& part : parts)
    for (int lane = 0; lane < part.block.lanes; lane++) {
      const size_t row = size_t(k) * s.channels + part.first + lane;
      for (int n = 0; n < states; n++) grad.A[row * states + n] += part.dA[n][lane];
      for (int r = 0; r < s.rank; r++) grad.dt_weight[row * s.rank + r] += part.d_weight[r][lane];
      grad.dt_bias[row] += part.d_bias[lane];
      grad.D[row] += part.dD[lane];
    }
}

template <class T>
void backward_states(const Scan& s, const Gradients& grad, int b, int k, int begin, int end) {
  switch (s.states) {
    case 8: return backward<T, 8>(s, grad, b, k, begin, end);
    case 10: return backward<T, 10>(s, grad, b, k, begin, end);
    case 16: return backward<T, 16>(s, grad, b, k, begin, end);
    default: return backward<T, 0>(s, grad, b, k, begin, end);
  }
}

void scan_backward(const Scan& s, const Gradients& grad, int b, int k, int begin, int end) {
  if (s.dtype == Dtype::float32)
    backward_states<float>(s, grad, b, k, begin, end);
  else
    backward_states<bf16>(s, grad, b, k, begin, end);
}

#define NAME_OF(isa) #isa
#define NAME(isa) NAME_OF(isa)

}  // namespace

void depthwise(const Depthwise&, int, int, int);
void depthwise_backward(const DepthwiseBackward&, int, int);
void norm_gate(const NormGate&, int64_t, int64_t);
void norm_gate_backward(const NormGateBackward&, int64_t, int64_t, float*);
int64_t packed_size(int, int);
int panels(int);
void pack(const float*, int, int, int, float*);
void linear(const Linear&, int64_t, int64_t);
void attention(const Attention&, int, int, int, int);
void route(const Route&, int64_t, int64_t);
void filter(const Filter&, int, int, int);
void sum_rows(const float*, int64_t, int, float*);
void weigh(const Weighed&, const float*, int64_t, int64_t);
float multiply_adds(int64_t);

extern const Kernels kernels;
const Kernels kernels{
    NAME(MAMBAIR_ISA), W,           scan_forward, scan_carry, scan_backward, depthwise, depthwise_backward, norm_gate,
    norm_gate_backward, packed_size, panels,       pack,       linear,        attention, route,              filter,
    sum_rows, weigh, multiply_adds};

}  // namespace MAMBAIR_ISA
