"""From a folder of pictures to memory-mapped uint8 arrays, under one preprocessing contract."""
