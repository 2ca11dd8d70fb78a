"""The page that measures a model inside a browser, and the npm packages it needs. Device layer."""
