// What the model takes and needs. Written by edgekit.
#ifndef @@UPPER@@_MODEL_SETTINGS_H_
#define @@UPPER@@_MODEL_SETTINGS_H_

#define @@UPPER@@_INPUT_HEIGHT @@HEIGHT@@
#define @@UPPER@@_INPUT_WIDTH @@WIDTH@@
#define @@UPPER@@_INPUT_PIXELS (@@UPPER@@_INPUT_HEIGHT * @@UPPER@@_INPUT_WIDTH)
#define @@UPPER@@_CLASSES @@CLASSES@@
@@THRESHOLD@@
@@ARENA_COMMENT@@
#ifndef @@UPPER@@_ARENA_BYTES
#define @@UPPER@@_ARENA_BYTES @@ARENA_BYTES@@
#endif

#endif  // @@UPPER@@_MODEL_SETTINGS_H_
