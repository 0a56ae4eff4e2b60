/* What a layer is ================================================================================================== */

/* A picture is bytes: the channels of a pixel lie side by side, and pixels row by row. From a pixel to the next are
   "step" bytes: more than it has channels, where it is a part of a wider one. So splitting and concatenating is no
   work: each layer writes its part where the whole is read. */

/* An activation function: from a number of 16 bits to the byte that the next layer reads. Beyond first and last it is
   constant. In between it is a straight line, or a table with an entry for every 2^shift numbers. Within an entry the
   result changes at most once: from its cut on, it is the value of the entry that follows. */
typedef struct {
    uint8_t value, cut;
} Entry;

typedef struct {
    int32_t first, last;
    int shift;
    int32_t slope, offset; /* of a line */
    int32_t step;          /* of a line that meets the middle between two bytes: numbers from byte to byte; else 0 */
    const Entry *table;    /* 0 for a line */
} Function;

/* Weights lie in blocks of 16 output channels, the rest in a narrower one, for a processor that computes as many at
   once: four weights of each channel, which meet four neighbouring bytes, then the next four. Each row of a window is
   filled up with zeros to a multiple of four. Weights of up to 4 bits lie two in a byte. */
typedef struct {
    int in_height, in_width, in_channels, in_step; /* channels of one group */
    int out_height, out_width, out_channels, out_step;
    int groups, size, stride, padding;
    int band;            /* rows of output for which the input is copied once; 0 where it can stay where it is */
    uint8_t zero_point;  /* the byte that stands for 0 in the input */
    uint8_t packed;      /* whether weights lie two in a byte */
    const int8_t *weights;
    const int32_t *bias; /* without what the zero point adds to each sum */
    const uint32_t *multiplier; /* sum * multiplier / 2^shift is what the function reads */
    const uint8_t *shift;
    uint8_t narrow;      /* whether 32 bits do for that, and sums are shifted to the left by "lift" first */
    uint8_t lift;
    uint8_t ties;        /* whether it ever matters to which side a number halfway between two is rounded */
    const Function *function;
} Convolution;

typedef struct {
    int pixels, channels, first_step, second_step, out_step;
    int zero_point, highest; /* of the grid that both summands and the result lie on */
} Sum;

typedef struct {
    int pixels, channels, in_step;
    int zero_point, new_zero_point, highest;
    int64_t numerator, denominator; /* their ratio turns a sum over all pixels into the mean on the new grid */
} Average;

enum { LANES = 16 }; /* output channels of a block */

#if defined(__GNUC__) /* GCC and Clang; OPTIONAL is what not every model and processor needs */
#define INLINE static inline __attribute__((always_inline, unused))
#define OPTIONAL static __attribute__((unused))
#else
#define INLINE static inline
#define OPTIONAL static
#endif

/* One window for each of up to PIXELS outputs: "rows" rows of "length" bytes, "pitch" bytes from one to the next. */
typedef struct {
    const uint8_t *start[8];
    int count, rows, length, pitch;
} Windows;
